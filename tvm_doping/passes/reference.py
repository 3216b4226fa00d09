"""The operators doping.* in NumPy, as packed functions: a module can be run after every pass, before any kernel exists.

doping.weight(spec, *arrays) -> W (m, n)                    spec: JSON of `structures.to_spec` and the names of the arrays
doping.lstm(x, h0, c0, w_ih, w_hh, b_ih, b_hh, reverse, name[, plan]) -> y, h, c
doping.linear(x, w, b, name[, plan]) -> y                   x (M, I), w (O, I), b (O,), y (M, O)
doping.lstm_packed(layer, x, h0, c0, *arrays) -> y, h, c    layer: JSON with the plan and the names of the arrays
doping.linear_packed(layer, x, *arrays) -> y              or the outputs of the plan's head
doping.embedding(tokens, w, name[, plan]) -> y              tokens (M,) int, w (V, D), y (M, D)
doping.embedding_packed(layer, tokens, *arrays) -> y
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tvm_doping import structures
from tvm_doping._tvm import tvm
from tvm_doping.kernels import EmbeddingPlan, LinearPlan, LstmPlan, embedding, linear, lstm


def weight_of(spec: str, arrays: list[Any]) -> np.ndarray:
    """The dense value (m, n) of a doping.weight."""
    dense: np.ndarray = structure_of(spec, arrays).to_dense()
    return dense


def structure_of(spec: str, arrays: list[Any]) -> structures.Structure:
    """The structure that a doping.weight holds."""
    described = json.loads(spec)
    return structures.from_spec(described, dict(zip(described["arrays"], arrays, strict=True)))


def lstm_layer(
    x: np.ndarray,
    h: np.ndarray,
    c: np.ndarray,
    w_ih: np.ndarray,
    w_hh: np.ndarray,
    bias: np.ndarray,
    reverse: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One LSTM layer in one direction: x (T, N, I), h and c (N, H) to y (T, N, H), h and c; bias (4H,)."""
    projected = x @ w_ih.T + bias
    y = np.empty((*x.shape[:2], h.shape[1]), "float32")
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        i, f, g, o = np.split(projected[t] + h @ w_hh.T, 4, axis=1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        y[t] = h
    return y, h, c


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # not 1 / (1 + exp(-x)), which overflows
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _views(arguments: Any) -> list[Any]:
    """Tensors as arrays on the same memory; everything else as it is."""
    return [np.from_dlpack(a) if hasattr(a, "__dlpack__") else a for a in arguments]


@tvm.register_global_func("doping.weight", override=True)
def _weight(spec: str, *arguments: Any) -> None:
    *arrays, out = _views(arguments)
    out[...] = weight_of(spec, arrays)


@tvm.register_global_func("doping.lstm", override=True)
def _lstm(*arguments: Any) -> None:
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, reverse, *_, y, h, c = _views(arguments)
    y[...], h[...], c[...] = lstm_layer(x, h0, c0, w_ih, w_hh, b_ih + b_hh, bool(reverse))


@tvm.register_global_func("doping.linear", override=True)
def _linear(*arguments: Any) -> None:
    x, w, b, *_, y = _views(arguments)
    y[...] = x @ w.T + b


@tvm.register_global_func("doping.embedding", override=True)
def _embedding(*arguments: Any) -> None:
    tokens, w, *_, y = _views(arguments)
    y[...] = w[np.clip(tokens, 0, len(w) - 1)]


@tvm.register_global_func("doping.lstm_packed", override=True)
def _lstm_packed(layer: str, *arguments: Any) -> None:
    x, h0, c0, *arrays, y, h, c = _views(arguments)
    plan, named = _unpack(layer, arrays)
    y[...], h[...], c[...] = lstm.reference(LstmPlan.from_json(plan), named, x, h0, c0)


@tvm.register_global_func("doping.linear_packed", override=True)
def _linear_packed(layer: str, *arguments: Any) -> None:
    x, *rest = _views(arguments)
    plan, named = _unpack(layer, rest)
    results = linear.reference(LinearPlan.from_json(plan), named, x)
    for y, result in zip(rest[-len(results) :], results, strict=True):
        y[...] = result


@tvm.register_global_func("doping.embedding_packed", override=True)
def _embedding_packed(layer: str, *arguments: Any) -> None:
    tokens, *arrays, y = _views(arguments)
    plan, named = _unpack(layer, arrays)
    y[...] = embedding.reference(EmbeddingPlan.from_json(plan), named, tokens)


def _unpack(layer: str, arrays: list[Any]) -> tuple[str, dict[str, Any]]:
    described = json.loads(layer)
    names = described["arrays"]
    return json.dumps(described["plan"]), dict(zip(names, arrays[: len(names)], strict=True))
