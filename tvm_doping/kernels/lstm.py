"""One LSTM layer in one direction as one function, the time loop inside.

    z_t = [x_t; h_(t-1)]        a = b_ih + b_hh + [W_ih W_hh] z_t        i, f, g, o = the quarters of a
    c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g)        h_t = sigmoid(o) tanh(c_t)

(Hochreiter and Schmidhuber 1997, with PyTorch's order of gates.) fp32; T and N are symbolic. A plan with a tile runs `tile` streams
of the batch side by side, one a lane, through all T steps; streams that fill no tile are run one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tvm_doping._tvm import IRBuilder, T, tirx, tvm
from tvm_doping.kernels import product
from tvm_doping.kernels.activations import sigmoid, tanh
from tvm_doping.kernels.emit import Buffer, Expr, load, store
from tvm_doping.kernels.plan import LstmPlan
from tvm_doping.kernels.scope import SLACK, Scope
from tvm_doping.kernels.streams import Streams, for_each


def pack(plan: LstmPlan, w_ih: Any, w_hh: Any, bias: np.ndarray) -> dict[str, np.ndarray]:
    """The layer's arrays, in the order in which the function takes them. bias (4H,) is b_ih + b_hh."""
    return {"bias": np.ascontiguousarray(bias, "float32"), **product.pack(plan.product, [w_ih, w_hh], plan.config)}


def reference(
    plan: LstmPlan, arrays: dict[str, np.ndarray], x: np.ndarray, h0: np.ndarray, c0: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The layer in NumPy on packed arrays: x (T, N, I), h0 and c0 (N, H) to y (T, N, H), h (N, H), c (N, H)."""
    w = product.to_dense(plan.product, arrays)
    w_ih, w_hh = (w[:, p.offset : p.offset + p.shape[1]] for p in plan.product.parts)
    h, c = h0.astype("float32"), c0.astype("float32")
    y = np.empty((*x.shape[:2], plan.hidden), "float32")
    for t in reversed(range(len(x))) if plan.reverse else range(len(x)):
        a = x[t] @ w_ih.T + h @ w_hh.T + arrays["bias"]
        i, f, g, o = np.split(a, 4, axis=1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        y[t] = h
    return y, h, c


def prim_func(plan: LstmPlan, arrays: Mapping[str, np.ndarray], name: str = "lstm") -> tvm.tirx.PrimFunc:
    """The function (x, h0, c0, *arrays, y, h, c) of the layer."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True, "doping.kernel": "lstm", "doping.format": plan.product.sparse or "none"})
            steps, batch = tirx.Var("steps", "int64"), tirx.Var("batch", "int64")
            shapes = {"x": (steps, batch, plan.inputs), "h0": (batch, plan.hidden), "c0": (batch, plan.hidden)}
            buffers = {key: T.match_buffer(T.arg(key, T.handle()), shape) for key, shape in shapes.items()}
            packed = product.parameters(arrays)
            outputs = {"y": (steps, batch, plan.hidden), "h": (batch, plan.hidden), "c": (batch, plan.hidden)}
            buffers |= {key: T.match_buffer(T.arg(key, T.handle()), shape) for key, shape in outputs.items()}
            for_each(batch, plan.config, _Layer(plan, buffers, packed, steps).run)
    return builder.get()


class _Layer:
    def __init__(self, plan: LstmPlan, io: dict[str, Buffer], packed: dict[str, Buffer], steps: Expr) -> None:
        self.plan, self.io, self.packed, self.steps = plan, io, packed, steps
        self.lanes = plan.config.lanes
        self.h_at = plan.product.parts[1].offset

    def run(self, streams: Streams) -> None:
        """All T steps of some streams."""
        plan, hidden, width = self.plan, self.plan.hidden, streams.width
        z = T.alloc_buffer(((plan.product.columns + SLACK) * width,), "float32")
        y = T.alloc_buffer(((4 * hidden + SLACK) * width,), "float32")
        c = T.alloc_buffer(((hidden + SLACK) * width,), "float32")
        scope = Scope(z=z, y=y, arrays=self.packed, config=plan.config, width=width)
        streams.gather(self.io["h0"], z, self.h_at, hidden)
        streams.gather(self.io["c0"], c, 0, hidden)
        with T.serial(0, self.steps) as step:
            t = T.bind(self.steps - 1 - step) if plan.reverse else step
            streams.gather(self.io["x"], z, 0, plan.inputs, t)
            product.set_bias(plan.product, scope)
            product.emit(plan.product, scope)
            self.gates(scope, c)
            streams.scatter(z, self.h_at, self.io["y"], hidden, t)
        streams.scatter(z, self.h_at, self.io["h"], hidden)
        streams.scatter(c, 0, self.io["c"], hidden)

    def gates(self, scope: Scope, c: Buffer) -> None:
        """The element-wise part; the last vector may run over into the slack of y, c and z, whose values are never read."""
        hidden, width, lanes = self.plan.hidden, scope.width, self.lanes

        def gate(k: int, at: Expr) -> Expr:
            return load(scope.y, k * hidden * width + at, lanes)

        with T.serial(0, -(-hidden * width // lanes)) as v:
            at = v * lanes
            kept = sigmoid(gate(1, at), lanes) * load(c, at, lanes)
            cell = T.bind(kept + sigmoid(gate(0, at), lanes) * tanh(gate(2, at), lanes))
            store(c, at, cell, lanes)
            store(scope.z, self.h_at * width + at, sigmoid(gate(3, at), lanes) * tanh(cell, lanes), lanes)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))
