"""Copies of TVM's own loops for some sizes of their arguments, beside the loops for any: those that MetaSchedule's rules scheduled,
and one for a single time step, whose values stand side by side along another axis.

A trace of sampled tiles is for the numbers that it was sampled for: TVM cannot replay it where an extent is a symbol. So a function
of symbols gets a copy a size, and asks for the size first:

    if N == 1 and T == 35: <scheduled for these> else: <loops for any N and T>
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import Trace
from tvm.s_tir.stmt import SBlock

from tvm_doping._tvm import tirx, tvm
from tvm_doping.errors import RecordError
from tvm_doping.kernels.trees import found, replaced

# The attribute of a function that says how to schedule it for some sizes: JSON, a list of what `Traced` has.
TRACES = "doping.traces"
TIME = "T"  # how the names of the symbols begin that count time steps
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Traced:
    """shapes: of all arguments; trace: the schedule for these, as MetaSchedule's database has it."""

    shapes: Shapes
    trace: list[Any]


def with_traces(function: Any, traces: Sequence[Traced]) -> Any:
    """The function with what `scheduled` reads."""
    texts = [{"shapes": traced.shapes, "trace": traced.trace} for traced in traces]
    return function.with_attr(TRACES, json.dumps(texts))


def fixed(function: Any, sizes: dict[str, int]) -> Any | None:
    """The function for given sizes of its symbols, by name; None where they do not make all shapes numbers."""
    function = _with_sizes(function, sizes)
    return None if _symbols(function) else function


def one_step(function: Any) -> Any | None:
    """A function that sums products, for one time step and any streams; None where it has no T."""
    if not multiplies(function):
        return None
    steps = {name: 1 for name in _symbols(function) if name.startswith(TIME)}
    special = _with_sizes(function, steps)
    return special if steps and steps.keys().isdisjoint(_symbols(special)) else None


def _with_sizes(function: Any, sizes: dict[str, int]) -> Any:
    """The function with numbers for those of its symbols that have a size and stand alone in a parameter's shape."""
    for name in _symbols(function):
        # a shape of sums or products of symbols is settled by the parameters that have them alone
        for param in function.params if name in sizes else ():
            if any(isinstance(d, tirx.Var) and d.name == name for d in param.shape):
                shape = [_number(d, sizes) for d in param.shape]
                function = function.specialize({param: tirx.decl_buffer(shape, str(param.dtype))})
                break
    return function


def shapes_of(function: Any) -> Shapes:
    """The shapes of all arguments of a function that `fixed` made."""
    return tuple(tuple(int(d) for d in param.shape) for param in function.params)


def workload(function: Any) -> Any:
    """A fixed function as the module that MetaSchedule schedules: what it computes, and nothing of where it comes from."""
    bare = tirx.PrimFunc(function.params, function.body, function.ret_type)
    return tvm.IRModule({"main": bare.with_attr({"global_symbol": "main", "tirx.noalias": True})})


def hash_of(work: Any) -> str:
    """TVM's structural hash of a workload, 16 hexadecimal digits."""
    return f"{tvm_ffi.structural_hash(work['main']) & (2**64 - 1):016x}"


def replay(work: Any, trace: list[Any]) -> Any:
    """The workload as a trace schedules it. RecordError for one that is not of this workload."""
    schedule = Schedule(work)
    try:
        Trace.apply_json_to_schedule(trace, schedule)
    except Exception as error:  # whatever TVM raises of what it cannot take
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise RecordError(
            "the trace of a record",
            "steps that TVM can take with these loops",
            said[-1][:300],
            "Delete the record; `tvm-doping tune` measures again.",
        ) from error
    return schedule.mod["main"]


def scheduled(function: Any) -> list[Any]:
    """The function for each size that it has a trace for, scheduled; those of other sizes than its own are left out."""
    if function.attrs is None or TRACES not in function.attrs:
        return []
    made = []
    for entry in json.loads(str(function.attrs[TRACES])):
        sizes = _sizes(function, entry["shapes"])
        special = None if sizes is None else fixed(function.without_attr(TRACES), sizes)
        if special is not None:
            made.append(replay(workload(special), entry["trace"]))
    return made


def choose_by_size(function: Any, special: Sequence[Any]) -> Any:
    """A lowered function that runs the one of `special`, lowered too, whose arguments have the sizes that it is given."""
    body = function.body
    for one in special:
        own, conditions = one.body, []
        for param, other in zip(function.params, one.params, strict=True):
            own = replaced(own, other, param)
            for d, n in zip(param.shape, other.shape, strict=True):
                if isinstance(n, tirx.Var):
                    own = replaced(own, n, d)
                elif isinstance(d, tirx.Var):
                    conditions.append(d == n)
        body = own if not conditions else tirx.IfThenElse(tirx.all(*conditions), own, body)
    return function.with_body(body)


def multiplies(function: Any) -> bool:
    """Whether a function sums products of float32, from buffers alone: what MetaSchedule's rules have tiles for."""
    if not all(_is_float32(param) for param in function.params):  # a size beside them is no buffer
        return False
    blocks = [b for b in found(function.body, SBlock) if b.init is not None]
    return any(found(block.body, tirx.Mul) for block in blocks)


def _is_float32(param: Any) -> bool:
    return isinstance(param.ty, tirx.BufferType) and str(param.dtype) == "float32"


def _symbols(function: Any) -> list[str]:
    return sorted(
        {d.name for p in function.params for d in p.shape if isinstance(d, tirx.Var)}
        | {str(d) for p in function.params for d in p.shape if not isinstance(d, tirx.IntImm | tirx.Var)}
    )


def _sizes(function: Any, shapes: Sequence[Sequence[int]]) -> dict[str, int] | None:
    """Symbol -> size, where the function can have these shapes."""
    sizes: dict[str, int] = {}
    if [len(p.shape) for p in function.params] != [len(shape) for shape in shapes]:
        return None
    for param, shape in zip(function.params, shapes, strict=True):
        for d, n in zip(param.shape, shape, strict=True):
            if isinstance(d, tirx.IntImm) and int(d) != n:
                return None
            if isinstance(d, tirx.Var) and sizes.setdefault(d.name, n) != n:
                return None
    return sizes


def _number(dim: Any, sizes: dict[str, int]) -> Any:
    known = isinstance(dim, tirx.Var) and dim.name in sizes
    return tirx.IntImm(str(dim.ty.dtype), sizes[dim.name]) if known else dim
