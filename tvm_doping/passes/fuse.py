"""Fuse: each packed layer becomes one call of its kernel, the time loop inside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tvm_doping._tvm import array_of, bindings, dps_call, out_types, rebuild, relax, replace_main, text_of
from tvm_doping.kernels import EmbeddingPlan, LinearPlan, LstmPlan, embedding, linear, lstm
from tvm_doping.passes.context import Context

# Attributes of the kernels' functions; JSON and names, as `Pack` made them.
REPORT, ARRAYS = "doping.report", "doping.arrays"
_OPAQUE = 8
# Packed operator -> (plan as JSON, arrays) -> its function.
_KERNELS: dict[str, Callable[[str, dict[str, Any]], Any]] = {
    "doping.lstm_packed": lambda plan, arrays: lstm.prim_func(LstmPlan.from_json(plan), arrays),
    "doping.linear_packed": lambda plan, arrays: linear.prim_func(LinearPlan.from_json(plan), arrays),
    "doping.embedding_packed": lambda plan, arrays: embedding.prim_func(
        EmbeddingPlan.from_json(plan), arrays
    ),
}


class Fuse:
    """doping.lstm_packed, doping.linear_packed and doping.embedding_packed -> call_tir of the kernel that the plan describes."""

    def __init__(self, context: Context) -> None:
        pass

    def __call__(self, mod: Any) -> Any:
        taken = {gv.name_hint for gv in mod.get_global_vars()}
        builder = relax.BlockBuilder(mod)
        kernels: dict[Any, tuple[Any, list[Any]]] = {}
        for binding in bindings(mod["main"]):
            call = dps_call(getattr(binding, "value", None))
            if call is not None and call[0] in _KERNELS:
                function, args = _kernel(call[0], call[1])
                name = _unique(json.loads(text_of(call[1][0]))["report"]["name"], taken)
                # add_func gives the name the function's type, without which no call of it can be made
                kernels[binding.var] = (builder.add_func(function, name), args)
        if not kernels:
            return mod
        mod = builder.get()

        def visit(var: Any, value: Any) -> list[Any] | None:
            if var not in kernels:
                return None
            gv, args = kernels[var]
            return [relax.call_tir(gv, args, out_ty=out_types(value))]

        return replace_main(mod, rebuild(mod["main"], visit))


def _kernel(operator: str, args: list[Any]) -> tuple[Any, list[Any]]:
    """The kernel's function with its attributes, and the arguments that it takes."""
    layer = json.loads(text_of(args[0]))
    arrays = dict(zip(layer["arrays"], (array_of(a) for a in args[-len(layer["arrays"]) :]), strict=True))
    plan = json.dumps(layer["plan"])
    function = _KERNELS[operator](plan, arrays)
    texts = {REPORT: json.dumps(layer["report"]), ARRAYS: json.dumps(layer["arrays"])}
    return finished(function.with_attr(texts)), args[1:]


def finished(kernel: Any) -> Any:
    """A kernel's function as the module takes it, which no later pass changes."""
    attributes = {
        "tirx.is_scheduled": True,  # or the schedules of Lower would change it
        "op_pattern": _OPAQUE,  # or FuseOps would look into it
    }
    return kernel.with_attr(attributes).without_attr("global_symbol")


def _unique(layer: str, taken: set[str]) -> str:
    base = "doping_" + re.sub(r"\W", "_", layer)
    name = next(n for n in (base, *(f"{base}_{i}" for i in range(2, 10_000))) if n not in taken)
    taken.add(name)
    return name
