"""The loops of TVM's own functions in the order that vectors want: the axis along which values are neighbours innermost."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm.s_tir import Schedule
from tvm.s_tir.dlight.analysis import normalize_prim_func

from tvm_doping._tvm import tirx, tvm


def order_loops(function: Any) -> Any:
    """The function with its reductions' loops ordered; as it is, where it is not made of plain blocks."""
    schedule = Schedule(function)
    blocks = normalize_prim_func(schedule)
    for info in blocks or ():
        if info.is_reduction():
            _reduction(schedule, info)
    return schedule.mod["main"]


def _reduction(schedule: Any, info: Any) -> None:
    """y[.., v] = sum over k of f(.., k, v): v innermost, if that is how f's values stand in memory; y starts before the sum."""
    over = [it.loop_rv for it in info.iters if it.kind == "R"]
    if not over:  # over one term only: the loop has been dropped
        return
    inner = _neighbours(schedule.get(info.block_rv), info)
    if inner is not None:
        schedule.reorder(*over, inner)
    schedule.decompose_reduction(info.block_rv, over[0])


def _neighbours(block: Any, info: Any) -> Any:
    """The loop over the last axis of what a block writes, if what it reads stands side by side along it; or None."""
    region = block.writes[0].region
    if not region:  # a single value
        return None
    last = region[-1].min
    loops = [it.loop_rv for it in info.iters if it.kind == "S" and it.var.same_as(last)]
    loads: list[Any] = []
    tvm_ffi.structural_walk(block.body, (tvm.ir.TensorLoad, lambda load: loads.append(load)))
    apart = any(_mentions(index, last) for load in loads for index in load.indices[:-1])
    return loops[0] if loops and not apart else None


def _mentions(expr: Any, var: Any) -> bool:
    found: list[Any] = []
    tvm_ffi.structural_walk(expr, (tirx.Var, lambda v: found.append(v)))
    return any(v.same_as(var) for v in found)
