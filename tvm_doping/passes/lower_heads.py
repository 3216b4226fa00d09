"""LowerHeads: argmax, topk, softmax and log_softmax of what no layer of ours makes become kernels of their own."""

from __future__ import annotations

import math
from typing import Any

from tvm_doping._tvm import bindings, definitions, rebuild, relax, replace_main, tirx
from tvm_doping.heads import Head
from tvm_doping.kernels import head as heads
from tvm_doping.kernels.plan import Config
from tvm_doping.passes.context import Context
from tvm_doping.passes.evaluate import is_fixed
from tvm_doping.passes.fuse import finished
from tvm_doping.passes.match_head import head_of, shaped
from tvm_doping.passes.naming import bound


class LowerHeads:
    """A head over the last axis (..., V) of a float32 tensor, V a number -> call_tir of `kernels.head.prim_func` over (M, V).

    TVM's own topk calls into a library that a deployed module has not loaded; its softmax calls libm for every value.
    """

    def __init__(self, context: Context) -> None:
        self.lanes = context.target.lanes

    def __call__(self, mod: Any) -> Any:
        builder = relax.BlockBuilder(mod)
        values = definitions(mod["main"])
        kernels: dict[Any, tuple[Any, Head]] = {}
        for binding in bindings(mod["main"]):
            head = head_of(getattr(binding, "value", None))
            if head is None or is_fixed(
                binding.value, values
            ):  # what depends on constants only, Lower computes
                continue
            if not isinstance(binding.value.args[0].ty.shape[-1], tirx.IntImm):
                continue
            columns = int(binding.value.args[0].ty.shape[-1])
            kernels[binding.var] = (builder.add_func(self._kernel(head, columns), "head"), head)
        if not kernels:
            return mod
        mod = builder.get()

        def visit(var: Any, value: Any) -> list[Any] | None:
            if var not in kernels:
                return None
            gv, head = kernels[var]
            *rows, columns = value.args[0].ty.shape
            count = math.prod(rows[1:], start=rows[0]) if rows else 1
            flat = relax.op.reshape(value.args[0], relax.ShapeExpr([count, columns]))
            x = bound(f"{var.name}_rows", flat)
            types = [
                relax.TensorType((count, width), dtype) for width, dtype in heads.outputs(head, int(columns))
            ]
            return [(x, flat), *shaped(var, value, relax.call_tir(gv, [x, x], out_ty=types))]

        return replace_main(mod, rebuild(mod["main"], visit))

    def _kernel(self, head: Head, columns: int) -> Any:
        # A row that fills vectors is taken alone; shorter ones side by side, one a lane.
        tile = 0 if columns >= self.lanes else self.lanes
        config = Config(lanes=self.lanes, registers=16, tile=tile, tile_from=2)
        return finished(heads.prim_func(head, columns, config))
