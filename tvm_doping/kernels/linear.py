"""One linear layer y = x W^T + b over M independent rows of x (M, I), fp32, M symbolic; W structured, sparse, both or dense.

With a head, what leaves the kernel is the head's outputs in place of y (M, O).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tvm_doping._tvm import IRBuilder, T, tirx, tvm
from tvm_doping.heads import Head
from tvm_doping.kernels import head as heads
from tvm_doping.kernels import product
from tvm_doping.kernels.cuda import linear as cuda_linear
from tvm_doping.kernels.emit import SHARED, region
from tvm_doping.kernels.plan import LinearPlan
from tvm_doping.kernels.scope import Scope, padded
from tvm_doping.kernels.streams import Streams, for_each, row


def pack(plan: LinearPlan, w: Any, bias: np.ndarray) -> dict[str, np.ndarray]:
    """The layer's arrays, in the order in which the function takes them. bias (O,)."""
    if plan.config.grid is not None:
        return cuda_linear.pack(plan, w, bias)
    return {"bias": np.ascontiguousarray(bias, "float32"), **product.pack(plan.product, w, plan.config)}


def reference(plan: LinearPlan, arrays: dict[str, np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """The layer in NumPy on packed arrays: y, or the outputs of the plan's head."""
    if plan.config.grid is not None:
        return cuda_linear.reference(plan, arrays, x)
    y: np.ndarray = product.reference(plan.product, arrays)(x) + arrays["bias"]
    return heads.reference(_head(plan), y.astype("float32"))


def prim_func(plan: LinearPlan, arrays: Mapping[str, np.ndarray], name: str = "linear") -> tvm.tirx.PrimFunc:
    """The function (x, *arrays, y) of the layer, or (x, *arrays, *outputs of the head)."""
    if plan.config.grid is not None:
        return cuda_linear.prim_func(plan, arrays, name)
    head = _head(plan)
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr(
            {
                "tirx.noalias": True,
                "doping.kernel": "linear",
                "doping.format": plan.product.format,
                SHARED: plan.config.shared,
            }
        )
        rows = tirx.Var("rows", "int64")
        x = T.match_buffer(T.arg("x", T.handle()), (rows, plan.inputs))
        packed = product.parameters(arrays)
        results = [
            T.match_buffer(T.arg(f"y{i or ''}", T.handle()), (rows, columns), dtype)
            for i, (columns, dtype) in enumerate(heads.outputs(head, plan.outputs))
        ]

        def run(streams: Streams) -> None:
            inner, outer = (padded(count, streams.width) for count in (plan.inputs, plan.outputs))
            scratch = product.scratch((plan.product,), plan.config, streams.width)
            scope = Scope(
                z=inner, y=outer, arrays=packed, config=plan.config, scratch=scratch, width=streams.width
            )
            with region(plan.config.shared):
                streams.gather(row(x)[0], inner, plan.inputs)
                product.set_bias(packed["bias"], plan.outputs, scope)
                product.emit(plan.product, scope)
                if head is None:
                    streams.scatter(outer, row(results[0])[1], plan.outputs)
            if head is not None:  # small beside the product: the calling thread's alone
                alone = replace(streams, shared=False)
                for buffer, y in zip(heads.emit(head, plan.outputs, scope), results, strict=True):
                    alone.scatter(buffer, row(y)[1], int(y.shape[1]))

        for_each(rows, plan.config.lanes, plan.config.tile, plan.config.tile_from, run, plan.config.shared)
    return builder.get()


def _head(plan: LinearPlan) -> Head | None:
    return Head.parse(plan.head) if plan.head else None
