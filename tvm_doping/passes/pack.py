"""Pack: weights take the form in which the chosen kernel reads them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tvm_doping._tvm import (
    StringImm,
    array_of,
    constant,
    definitions,
    dps_call,
    out_types,
    rebuild,
    relax,
    replace_main,
    text_of,
)
from tvm_doping.kernels import EmbeddingPlan, LinearPlan, LstmPlan, embedding, linear, lstm
from tvm_doping.kernels.cuda import linear as cuda_linear
from tvm_doping.kernels.cuda import lstm as cuda_lstm
from tvm_doping.kernels.cuda import parts
from tvm_doping.kernels.plan import Product
from tvm_doping.kernels.product import select, to_dense
from tvm_doping.passes.choose import weight
from tvm_doping.passes.context import Context
from tvm_doping.structures import Doped, Structure

_PLANNED = {"doping.lstm": 10, "doping.linear": 5, "doping.embedding": 4}


class Pack:
    """A layer with a plan -> doping.lstm_packed(layer, x, h0, c0, *arrays) or doping.linear_packed(layer, x, *arrays),
    doping.embedding_packed(layer, tokens, *arrays).

    layer is JSON: "plan", "arrays" (names) and "report" (what the bundle's manifest says of the layer).
    """

    def __init__(self, context: Context) -> None:
        pass

    def __call__(self, mod: Any) -> Any:
        values = definitions(mod["main"])

        def visit(var: Any, value: Any) -> list[Any] | None:
            call = dps_call(value)
            if call is None or len(call[1]) != _PLANNED.get(call[0]):
                return None
            operator, args = call
            layer, arrays = _LAYERS[operator](args, values)
            inputs = args[:3] if operator == "doping.lstm" else args[:1]
            described = StringImm(json.dumps(layer))
            constants = [constant(array) for array in arrays.values()]
            return [
                relax.call_dps_packed(
                    f"{operator}_packed", [described, *inputs, *constants], out_ty=out_types(value)
                )
            ]

        new = replace_main(mod, rebuild(mod["main"], visit))
        return relax.transform.DeadCodeElimination(["main"])(new)


def _lstm(args: list[Any], values: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    plan = LstmPlan.from_json(text_of(args[9]))
    w_ih, w_hh = (weight(args[i], values) for i in (3, 4))
    b_ih, b_hh = (_array(args[i]) for i in (5, 6))
    arrays = lstm.pack(plan, w_ih, w_hh, b_ih + b_hh)
    bias = b_ih.size + b_hh.size if b_ih.any() or b_hh.any() else 0
    products = [(plan.input, w_ih, "ih."), (plan.recurrent, w_hh, "hh.")]
    return _layer(text_of(args[8]), "lstm", plan, products, arrays, bias)


def _linear(args: list[Any], values: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    plan = LinearPlan.from_json(text_of(args[4]))
    w, b = weight(args[1], values), _array(args[2])
    arrays = linear.pack(plan, w, b)
    return _layer(text_of(args[3]), "linear", plan, [(plan.product, w, "")], arrays, b.size if b.any() else 0)


def _embedding(args: list[Any], values: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    plan = EmbeddingPlan.from_json(text_of(args[3]))
    w = weight(args[1], values)
    arrays = embedding.pack(plan, w)
    return _layer(text_of(args[2]), "embedding", plan, [(plan.product, w, "")], arrays, 0)


_LAYERS = {"doping.lstm": _lstm, "doping.linear": _linear, "doping.embedding": _embedding}


def _layer(
    name: str,
    operation: str,
    plan: LstmPlan | LinearPlan | EmbeddingPlan,
    products: list[tuple[Product, Structure, str]],
    arrays: dict[str, np.ndarray],
    bias: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    weights = [structure for _, structure, _ in products]
    dense = sum(m * n for m, n in (w.shape for w in weights))
    report = {
        "name": name,
        "op": operation,
        "structure": "; ".join(describe(w) for w in weights),
        "shape": [size for w in weights for size in w.shape],
        "kernel": operation,
        "format": ", ".join(dict.fromkeys(p.format for p, _, _ in products)),
        "values": ", ".join(dict.fromkeys(p.values for p, _, _ in products)),
        "rounding": _rounding(plan, products, arrays),
        "reason": plan.reason,
        "rejected": list(plan.rejected),
        "parameters": sum(w.parameters for w in weights) + bias,
        "dense_parameters": dense + bias,
        "bytes": sum(array.nbytes for array in arrays.values()),
        "dense_bytes": 4 * (dense + bias),
        "plan": json.loads(plan.to_json()),
    }
    return {"plan": report["plan"], "arrays": list(arrays), "report": report}, arrays


def _rounding(
    plan: LstmPlan | LinearPlan | EmbeddingPlan,
    products: list[tuple[Product, Structure, str]],
    arrays: dict[str, np.ndarray],
) -> float:
    """|rounded - W| / |W| over all weights of a layer, Frobenius norms; 0 where all values are fp32."""
    if all(product.values == "fp32" for product, _, _ in products):
        return 0.0
    off = whole = 0.0
    for product, structure, prefix in products:
        dense = structure.to_dense().astype("float64")
        stored = _stored(plan, product, select(arrays, prefix))
        off += float(np.square(stored - dense).sum())
        whole += float(np.square(dense).sum())
    return float(np.sqrt(off / whole)) if whole else 0.0


def _stored(
    plan: LstmPlan | LinearPlan | EmbeddingPlan, product: Product, arrays: dict[str, np.ndarray]
) -> np.ndarray:
    """The matrix that a product's arrays stand for."""
    if plan.config.grid is None:
        return to_dense(product, arrays)
    assert not isinstance(plan, EmbeddingPlan)  # which a GPU looks up in a dense table
    cut = cuda_lstm.cut_of(plan) if isinstance(plan, LstmPlan) else cuda_linear.cut_of(plan)
    return parts.to_dense(product, arrays, cut)


def describe(weight: Structure) -> str:
    """A structure in words: "kronecker 20x130 (x) 130x10 + S of 84500 (2.5 %)"."""
    base = weight.base if isinstance(weight, Doped) else weight
    shapes = [f"{a.shape[0]}x{a.shape[1]}" for a in base.arrays().values() if a.ndim == 2]
    text = f"{base.kind} {' (x) '.join(shapes) if base.kind == 'kronecker' else ', '.join(shapes)}".strip()
    if isinstance(weight, Doped):
        S = f"S of {weight.S.nnz} ({100 * weight.density:.2g} %)"
        return S if base.kind == "zero" else f"{text} + {S}"
    return text


def _array(expr: Any) -> np.ndarray:
    array = array_of(expr)
    assert array is not None, "RecoverStructure makes biases constants"
    return array
