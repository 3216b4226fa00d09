"""The scores that indices among a module's outputs were chosen by: what tells a tie that rounding decided from an error."""

from __future__ import annotations

from typing import Any

from tvm_doping._tvm import definitions, op_name, rebuild, relax, replace_main
from tvm_doping.passes.match_head import head_of

_VIEWS = ("relax.reshape", "relax.squeeze", "relax.expand_dims")


def add_scores(mod: Any) -> tuple[Any, list[int]]:
    """The module with the scores (..., V) of each output that is indices from an argmax or a topk as further outputs;
    and the numbers of these outputs.
    """
    main = mod["main"]
    values = definitions(main)
    whole = values.get(main.body.body, main.body.body)
    if not isinstance(whole, relax.Tuple):
        return mod, []
    found = {i: s for i, field in enumerate(whole.fields) if (s := _scores(field, values)) is not None}
    if not found:
        return mod, []
    result, more = main.body.body, relax.Tuple([*whole.fields, *found.values()])
    body = relax.Var(result.name, relax.TupleType([field.ty for field in more.fields]))

    def visit(var: Any, value: Any) -> list[Any] | None:
        # bound beside the old result: within its block, whose variables nothing outside of it sees
        return [(body, more), value] if var.same_as(result) else None

    new = replace_main(mod, rebuild(main, visit, body=body))
    return relax.transform.DeadCodeElimination(["main"])(new), list(found)


def _scores(expr: Any, values: dict[Any, Any]) -> Any:
    """The scores behind indices; None for any other expression."""
    while expr in values:
        value = values[expr]
        if isinstance(value, relax.Var):
            expr = value
        elif op_name(value) in _VIEWS:
            expr = value.args[0]
        elif isinstance(value, relax.TupleGetItem):
            source = values.get(value.tuple_value)
            if isinstance(source, relax.Tuple):
                expr = source.fields[value.index]
                continue
            return _argument(source, "top_k") if value.index == 1 else None
        else:
            return _argument(value, "argmax")
    return None


def _argument(expr: Any, kind: str) -> Any:
    head = head_of(expr)
    return expr.args[0] if head is not None and head.kind == kind else None
