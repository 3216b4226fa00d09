"""The loops of TVM's own functions as vectors want them: chains in one loop, and innermost the axis of neighbours in memory."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir.dlight.analysis import normalize_prim_func
from tvm.s_tir.schedule import ScheduleError

from tvm_doping._tvm import tirx, tvm
from tvm_doping.kernels.trees import found, replaced, uses


def order_loops(function: Any) -> Any:
    """The function with its chains inlined and its reductions' loops ordered; as it is, where it is not made of plain blocks."""
    schedule = Schedule(function)
    blocks = normalize_prim_func(schedule)
    infos = {info.name: info for info in blocks or ()}
    for info in infos.values():
        if _worth_inlining(schedule, info, infos):
            # what cannot be, as a block whose values the function returns, stays
            with suppress(ScheduleError):
                schedule.compute_inline(info.block_rv)
    for info in blocks or ():
        if info.is_reduction():
            _reduction(schedule, info)
    return schedule.mod["main"]


def _worth_inlining(schedule: Any, info: Any, infos: dict[str, Any]) -> bool:
    """Whether to compute a block's values where they are used: in one place, and not more often; copies anywhere."""
    names = [schedule.get(rv).name_hint for rv in schedule.get_consumers(info.block_rv)]
    consumers = [infos[name] for name in names if name in infos]
    store = schedule.get(info.block_rv).body
    if not info.is_injective() or not consumers or not isinstance(store, tirx.BufferStore):
        return False
    if len(consumers) < len(names) or not all(consumer.is_injective() for consumer in consumers):
        return False
    if isinstance(store.value, tvm.ir.TensorLoad | tirx.FloatImm):
        return True
    bodies = [schedule.get(consumer.block_rv).body for consumer in consumers]
    count = sum(
        load.source.same_as(store.buffer) for body in bodies for load in found(body, tvm.ir.TensorLoad)
    )
    return count == 1 and (_as_many(info, consumers[0]) or not found(store.value, tvm.ir.Call))


def _as_many(a: Any, b: Any) -> bool:
    """Whether two blocks run equally often."""
    runs = [math.prod((it.dom for it in info.iters), start=tirx.const(1, "int64")) for info in (a, b)]
    return bool(tvm.sym.Analyzer().can_prove_equal(*runs))


def _reduction(schedule: Any, info: Any) -> None:
    """y[.., v] = sum over k of f(.., k, v): v innermost, if that is how f's values stand in memory; y starts before the sum."""
    over = [it.loop_rv for it in info.iters if it.kind == "R"]
    if not over:  # over one term only: the loop has been dropped
        return
    block = schedule.get(info.block_rv)
    inner = _neighbours(block, info)
    if inner is not None:
        schedule.reorder(*over, inner)
    elif len(over) > 1 and _one_run(block, info):
        over = [schedule.fuse(*over)]
    schedule.decompose_reduction(info.block_rv, over[0])


def _neighbours(block: Any, info: Any) -> Any:
    """The loop over the last axis of what a block writes, if what it reads stands side by side along it; or None."""
    region = block.writes[0].region
    if not region:  # a single value
        return None
    last = region[-1].min
    loops = [it.loop_rv for it in info.iters if it.kind == "S" and it.var.same_as(last)]
    loads = found(block.body, tvm.ir.TensorLoad)
    apart = any(uses(index, last) for load in loads for index in load.indices[:-1])
    return loops[0] if loops and not apart else None


def _one_run(block: Any, info: Any) -> bool:
    """Whether all that a sum over several axes reads stands side by side along them: a single longer run, as for one axis."""
    over = [it for it in info.iters if it.kind == "R"]
    places = [_place(load) for load in found(block.body, tvm.ir.TensorLoad)]
    moving = [at for at in places if any(uses(at, it.var) for it in over)]
    step = tirx.const(1, "int64")
    for it in reversed(over):  # innermost first: a step of each is as far as all steps of the one within it
        for at in moving:
            if not tvm.sym.Analyzer().can_prove_equal(replaced(at, it.var, it.var + 1) - at, step):
                return False
        step = step * it.dom
    return True


def _place(load: Any) -> Any:
    """How far a loaded value lies from its buffer's first."""
    at: Any = tirx.const(0, "int64")
    for index, extent in zip(load.indices, load.source.shape, strict=True):
        at = at * extent + index
    return at
