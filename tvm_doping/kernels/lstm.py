"""One LSTM layer in one direction as one function, the time loop inside.

    a_t = b_ih + b_hh + W_ih x_t + W_hh h_(t-1)        i, f, g, o = the quarters of a_t
    c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g)      h_t = sigmoid(o) tanh(c_t)

(Hochreiter and Schmidhuber 1997, with PyTorch's order of gates.) fp32; T and N are symbolic.

Streams of a batch run side by side, one a lane (Config.tile), or one by one. Of a stream that runs alone, the input projection of
many steps runs as a tile, one step a lane (Config.steps): it does not wait for h, and each nonzero then serves all lanes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tvm_doping._tvm import IRBuilder, T, tirx, tvm
from tvm_doping.kernels import product
from tvm_doping.kernels.activations import sigmoid, sigmoid_tanh
from tvm_doping.kernels.cuda import lstm as cuda_lstm
from tvm_doping.kernels.emit import LINES, SHARED, Buffer, Expr, copy, load, region, split, store
from tvm_doping.kernels.plan import LstmPlan
from tvm_doping.kernels.scope import Scope, padded
from tvm_doping.kernels.streams import Streams, for_each, row


def pack(plan: LstmPlan, w_ih: Any, w_hh: Any, bias: np.ndarray) -> dict[str, np.ndarray]:
    """The layer's arrays, in the order in which the function takes them. bias (4H,) is b_ih + b_hh."""
    if plan.config.grid is not None:
        return cuda_lstm.pack(plan, w_ih, w_hh, bias)
    return {
        "bias": np.ascontiguousarray(bias, "float32"),
        **product.pack(plan.input, w_ih, plan.config, "ih."),
        **product.pack(plan.recurrent, w_hh, plan.config, "hh."),
    }


def reference(
    plan: LstmPlan, arrays: dict[str, np.ndarray], x: np.ndarray, h0: np.ndarray, c0: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The layer in NumPy on packed arrays: x (T, N, I), h0 and c0 (N, H) to y (T, N, H), h (N, H), c (N, H)."""
    bias = arrays["bias"]
    if plan.config.grid is not None:
        w_ih, w_hh, bias = cuda_lstm.products(plan, arrays)
    else:
        w_ih = product.reference(plan.input, product.select(arrays, "ih."))
        w_hh = product.reference(plan.recurrent, product.select(arrays, "hh."))
    h, c = h0.astype("float32"), c0.astype("float32")
    y = np.empty((*x.shape[:2], plan.hidden), "float32")
    for t in reversed(range(len(x))) if plan.reverse else range(len(x)):
        i, f, g, o = np.split(w_ih(x[t]) + w_hh(h) + bias, 4, axis=1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        y[t] = h
    return y, h, c


def prim_func(plan: LstmPlan, arrays: Mapping[str, np.ndarray], name: str = "lstm") -> tvm.tirx.PrimFunc:
    """The function (x, h0, c0, *arrays, y, h, c) of the layer."""
    if plan.config.grid is not None:
        return cuda_lstm.prim_func(plan, arrays, name)
    formats = f"{plan.input.format},{plan.recurrent.format}"
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr(
            {
                "tirx.noalias": True,
                "doping.kernel": "lstm",
                "doping.format": formats,
                SHARED: plan.config.shared,
            }
        )
        steps, batch = tirx.Var("steps", "int64"), tirx.Var("batch", "int64")
        shapes = {
            "x": (steps, batch, plan.inputs),
            "h0": (batch, plan.hidden),
            "c0": (batch, plan.hidden),
        }
        io = {key: T.match_buffer(T.arg(key, T.handle()), shape) for key, shape in shapes.items()}
        packed = product.parameters(arrays)
        outputs = {"y": (steps, batch, plan.hidden), "h": (batch, plan.hidden), "c": (batch, plan.hidden)}
        io |= {key: T.match_buffer(T.arg(key, T.handle()), shape) for key, shape in outputs.items()}
        layer = _Layer(plan, io, packed, steps)
        for_each(
            batch, plan.config.lanes, plan.config.tile, plan.config.tile_from, layer.run, plan.config.shared
        )
    return builder.get()


class _Layer:
    """The emitter: one buffer each for x_t, h, c, and the gates, in the layout of the streams that run together."""

    def __init__(self, plan: LstmPlan, io: dict[str, Buffer], packed: dict[str, Buffer], steps: Expr) -> None:
        self.plan, self.io, self.packed, self.steps = plan, io, packed, steps
        self.ih, self.hh = product.select(packed, "ih."), product.select(packed, "hh.")

    def run(self, streams: Streams) -> None:
        """All T steps of some streams."""
        hidden, width = self.plan.hidden, streams.width
        x, h, c = (padded(count, width) for count in (self.plan.inputs, hidden, hidden))
        gates, scratch = padded(4 * hidden, width), self.scratch(width)
        ahead = _Ahead(self) if width == 1 and self.plan.config.steps else None

        def finish(t: Expr) -> None:
            """From the gates' input part to h_t and c_t."""
            product.emit(self.plan.recurrent, self.scope(h, gates, self.hh, scratch, width))
            self.cell(gates, h, c, width)
            streams.scatter(h, row(self.io["y"], t)[1], hidden)

        def whole(step: Expr) -> None:
            t = self.time(step)
            with region(self.plan.config.shared):
                streams.gather(row(self.io["x"], t)[0], x, self.plan.inputs)
                scope = self.scope(x, gates, self.ih, scratch, width)
                product.set_bias(self.packed["bias"], 4 * hidden, scope)
                product.emit(self.plan.input, scope)
                finish(t)

        # A region a step, not one for all steps: threads that are late for one (pool.c) are then without work for a step only.
        alone = replace(streams, shared=False)
        alone.gather(row(self.io["h0"])[0], h, hidden)
        alone.gather(row(self.io["c0"])[0], c, hidden)
        if ahead is not None:
            ahead.run(streams.first, gates, whole, finish)
        else:
            with T.serial(0, self.steps) as step:
                whole(step)
        alone.scatter(h, row(self.io["h"])[1], hidden)
        alone.scatter(c, row(self.io["c"])[1], hidden)

    def cell(self, gates: Buffer, h: Buffer, c: Buffer, width: int) -> None:
        """The element-wise part; the last vector may run over into the slack of its buffers, whose values are never read."""
        hidden, lanes = self.plan.hidden, self.plan.config.full

        def gate(k: int, at: Expr) -> Expr:
            return load(gates, k * hidden * width + at, lanes)

        def states(v: Expr) -> None:
            at = v * lanes
            kept = sigmoid(gate(1, at), lanes, load(c, at, lanes))
            store(c, at, kept + sigmoid_tanh(gate(0, at), gate(2, at), lanes), lanes)

        def outputs(v: Expr) -> None:
            at = v * lanes
            store(h, at, sigmoid_tanh(gate(3, at), load(c, at, lanes), lanes), lanes)

        # h of a vector waits for its c: two exp and two divisions, more than a CPU can look ahead. So all c, then all h. No
        # loop around the two: LLVM would keep the constants of exp in registers that the products need.
        whole, shared = -(-hidden * width // lanes), self.plan.config.shared
        for part in (states, outputs):
            with split(whole, shared, LINES // 4, wait=part is outputs) as v:
                part(v)

    def time(self, step: Expr) -> Expr:
        return self.steps - 1 - step if self.plan.reverse else step

    def scope(self, z: Buffer, y: Buffer, arrays: Mapping[str, Buffer], scratch: Buffer, width: int) -> Scope:
        return Scope(z=z, y=y, arrays=arrays, config=self.plan.config, scratch=scratch, width=width)

    def scratch(self, width: int) -> Buffer:
        return product.scratch((self.plan.input, self.plan.recurrent), self.plan.config, width)


class _Ahead:
    """Projects the inputs of many steps of a stream as a tile, then runs the steps; a small remainder projects its own."""

    def __init__(self, layer: _Layer) -> None:
        plan = layer.plan
        self.layer, self.rows, width = layer, 4 * plan.hidden, plan.config.steps
        self.x, self.tile = padded(plan.inputs, width), padded(self.rows, width)
        self.scratch = layer.scratch(width)
        self.projected = T.alloc_buffer((width, self.rows), "float32")

    def run(self, n: Expr, gates: Buffer, whole: Any, finish: Any) -> None:
        layer, rows = self.layer, self.rows
        config = layer.plan.config

        def chunk(steps: Streams) -> None:
            if steps.width == 1:
                whole(steps.first)
                return
            read, write = row(self.projected)
            with region(config.shared):
                steps.gather(
                    lambda s, i, w: row(layer.io["x"], layer.time(s))[0](n, i, w), self.x, layer.plan.inputs
                )
                scope = layer.scope(self.x, self.tile, layer.ih, self.scratch, steps.width)
                product.set_bias(layer.packed["bias"], rows, scope)
                product.emit(layer.plan.input, scope)
                steps.scatter(self.tile, lambda s, i, v, w: write(s - steps.first, i, v, w), rows)
            with (
                T.serial(0, tirx.min(tirx.const(steps.width, "int64"), layer.steps - steps.first)) as s,
                region(config.shared),
            ):
                copy(
                    lambda i, w: read(s, i, w),
                    lambda i, v, w: store(gates, i, v, w),
                    rows,
                    config.lanes,
                    config.shared,
                )
                finish(layer.time(steps.first + s))

        for_each(layer.steps, config.lanes, config.steps, config.steps_from, chunk, config.shared)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * x))
