"""The state of a stream: initial states that a model starts from zero become inputs, and final states outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tvm_doping._tvm import (
    array_of,
    bindings,
    definitions,
    dps_call,
    op_name,
    out_types,
    rebuild,
    relax,
    replace_main,
    text_of,
)

_ZEROS = {"relax.zeros", "relax.zeros_like"}
_FILLS = {"relax.full", "relax.full_like"}
# Operators that pass on the elements of their first argument.
_VIEWS = {
    "relax.take", "relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.permute_dims", "relax.strided_slice",
    "relax.broadcast_to", "relax.astype", "relax.dynamic_strided_slice", "relax.split",
}  # fmt: skip


@dataclass
class Lifted:
    """names: the layers whose state became an input and an output, "lstm.l0" its "lstm.l0.h" and "lstm.l0.c", in order."""

    mod: Any
    names: list[str] = field(default_factory=list)


def lift_state(mod: Any) -> Lifted:
    """main with, after its own inputs, the h and c (N, H) of every unidirectional LSTM layer whose initial state is zero, and
    their new values after its own outputs.

    The layers of a bidirectional LSTM keep starting from zero: they see a whole sequence, not a stream.
    """
    main = mod["main"]
    values = definitions(main)
    calls = [
        (b.var, call[1])
        for b in bindings(main)
        if (call := dps_call(getattr(b, "value", None))) and call[0] == "doping.lstm"
    ]
    named = {text_of(args[8]) for _, args in calls}
    lifted = Lifted(mod)
    state: dict[Any, tuple[Any, Any]] = {}
    for var, args in calls:
        name = text_of(args[8])
        two_ways = name.endswith("_reverse") or f"{name}_reverse" in named
        if two_ways or not (_is_zero(args[1], values) and _is_zero(args[2], values)):
            continue
        h, c = (relax.Var(f"{name}.{key}".replace(".", "_"), args[1].ty) for key in "hc")
        state[var] = (h, c)
        lifted.names.append(name)
    if not state:
        return lifted

    def visit(var: Any, value: Any) -> list[Any] | None:
        if var not in state:
            return None
        _, args = dps_call(value) or ("", [])
        args[1:3] = state[var]
        return [relax.call_dps_packed("doping.lstm", args, out_ty=out_types(value))]

    new = rebuild(main, visit)
    lifted.mod = replace_main(
        mod,
        _with_outputs(
            new, [(var, i) for var in state for i in (1, 2)], [s for pair in state.values() for s in pair]
        ),
    )
    return lifted


def _with_outputs(function: Any, wanted: list[tuple[Any, int]], params: list[Any]) -> Any:
    """The function with more parameters, and the items (variable, index) of tuples appended to the tuple that it returns."""
    result = definitions(function)[function.body.body]
    fields = list(result.fields)
    builder = relax.BlockBuilder()
    items = []
    for var, index in wanted:
        item = builder.normalize(relax.TupleGetItem(var, index))
        items.append((relax.DataflowVar(f"{var.name}_{index}", item.ty), item))
    whole = builder.normalize(relax.Tuple([*fields, *(var for var, _ in items)]))
    output = relax.Var("outputs", whole.ty)

    def visit(var: Any, value: Any) -> list[Any] | None:
        return [*items, (output, whole), value] if var.same_as(function.body.body) else None

    return rebuild(function, visit, params=[*function.params, *params], body=output)


def _is_zero(expr: Any, values: dict[Any, Any]) -> bool:
    """Whether the expression is zero throughout: a filled tensor, or a part of one."""
    while True:
        expr = values.get(expr, expr) if isinstance(expr, relax.Var) else expr
        name = op_name(expr)
        if name in _ZEROS:
            return True
        if name in _FILLS:
            fill = array_of(expr.args[1])
            return fill is not None and math.isclose(float(fill), 0.0, abs_tol=0.0)
        constant = array_of(expr)
        if constant is not None:
            return not constant.any()
        if isinstance(expr, relax.TupleGetItem):
            expr = expr.tuple_value
        elif name in _VIEWS:
            expr = expr.args[0]
        else:
            return False
