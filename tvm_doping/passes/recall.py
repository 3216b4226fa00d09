"""Recall: the loops that Lower made get the schedules that tuning found for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from tvm_doping._tvm import replace_main, tirx, tvm
from tvm_doping.kernels import traced
from tvm_doping.passes.context import Context

# The attribute of a function that has such schedules: what the bundle's manifest says of them, JSON.
RECALLED = "doping.recalled"
STEPS = (1, 35)  # T of the calls that tuning measures: a step, and a sequence


class Recall:
    """A dense function with a record for its sizes -> the same with its traces (kernels.traced), which lowering reads.

    The sizes are those of the context's streams, for the T that tuning measures and the context's own.
    """

    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, mod: Any) -> Any:
        context = self.context
        if context.records is None or not context.records.files:
            return mod
        new = {}
        for gv, function in dense(mod):
            traces, said = [], []
            for _, fixed in sizes_of(function, context.batch, (*STEPS, context.steps)):
                work = traced.workload(fixed)
                found = context.records.loops(traced.hash_of(work), tvm_version(), context.target)
                if found is None:
                    continue
                record, device = found
                traced.replay(work, list(record.trace))  # or an error of TVM's comes from within the build
                traces.append(traced.Traced(shapes=traced.shapes_of(fixed), trace=list(record.trace)))
                (T, us), *_ = record.us.items()
                said.append(
                    f"{gv.name_hint} tuned: {us:.4g} us at T = {T} (own loops {record.heuristic_us[T]:.4g}), "
                    f"best of {record.trials} on {device.cpu}"
                )
            if traces:
                new[gv] = traced.with_traces(function, traces).with_attr(RECALLED, json.dumps(said))
        if not new:
            return mod
        functions = {gv: new.get(gv, f) for gv, f in mod.functions_items()}
        return replace_main(tvm.IRModule(functions, attrs=mod.attrs), mod["main"])


def dense(mod: Any) -> Iterator[tuple[Any, Any]]:
    """(name, function) of the module's dense functions that are no kernels of ours: convolutions, products of two inputs."""
    for gv, function in sorted(mod.functions_items(), key=lambda item: item[0].name_hint):
        if not isinstance(function, tirx.PrimFunc) or "tirx.is_scheduled" in (function.attrs or {}):
            continue
        if traced.TRACES not in (function.attrs or {}) and traced.multiplies(function):
            yield gv, function


def sizes_of(function: Any, batch: int, steps: tuple[int, ...]) -> Iterator[tuple[int, Any]]:
    """(T, the function for T steps of `batch` streams), those that are the same once."""
    seen = set()
    symbols = {d.name for p in function.params for d in p.shape if isinstance(d, tirx.Var)}
    for T in dict.fromkeys(steps):
        fixed = traced.fixed(
            function, {name: T if name.startswith(traced.TIME) else batch for name in symbols}
        )
        if fixed is not None and traced.shapes_of(fixed) not in seen:
            seen.add(traced.shapes_of(fixed))
            yield T, fixed


def tvm_version() -> str:
    """The TVM that hashes and traces are of."""
    return metadata.version("apache-tvm")
