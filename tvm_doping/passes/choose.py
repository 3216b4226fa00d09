"""Choose: every layer gets a plan, from the target's schedules."""

from __future__ import annotations

from typing import Any

from tvm_doping._tvm import (
    StringImm,
    array_of,
    definitions,
    dps_call,
    out_types,
    rebuild,
    relax,
    replace_main,
    text_of,
)
from tvm_doping.passes.context import Context
from tvm_doping.passes.reference import structure_of
from tvm_doping.schedules import choose_embedding, choose_linear, choose_lstm
from tvm_doping.structures import Structure

# How many arguments a layer has before it has a plan, the last one of which is the plan's place.
_UNPLANNED = {"doping.lstm": 9, "doping.linear": 4, "doping.embedding": 3}


class Choose:
    """doping.lstm, doping.linear and doping.embedding -> the same with the plan, as JSON, as their last argument."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, mod: Any) -> Any:
        values = definitions(mod["main"])
        choices = {
            "doping.lstm": self._lstm,
            "doping.linear": self._linear,
            "doping.embedding": self._embedding,
        }

        def visit(var: Any, value: Any) -> list[Any] | None:
            call = dps_call(value)
            if call is None or len(call[1]) != _UNPLANNED.get(call[0]):
                return None
            operator, args = call
            plan = choices[operator](args, values)
            return [relax.call_dps_packed(operator, [*args, StringImm(plan)], out_ty=out_types(value))]

        return replace_main(mod, rebuild(mod["main"], visit))

    def _lstm(self, args: list[Any], values: dict[Any, Any]) -> str:
        c = self.context
        w_ih, w_hh = (weight(args[i], values) for i in (3, 4))
        plan = choose_lstm(
            w_ih,
            w_hh,
            reverse=bool(int(args[7])),
            target=c.target,
            batch=c.batch,
            steps=c.steps,
            precision=c.precision,
            threads=c.threads,
            force=_dict(c.force),
            records=c.records,
        )
        return plan.to_json()

    def _linear(self, args: list[Any], values: dict[Any, Any]) -> str:
        c = self.context
        plan = choose_linear(
            weight(args[1], values),
            target=c.target,
            batch=c.batch,
            steps=c.steps,
            precision=c.precision,
            threads=c.threads,
            force=_dict(c.force),
            records=c.records,
        )
        return plan.to_json()

    def _embedding(self, args: list[Any], values: dict[Any, Any]) -> str:
        tokens = str(args[0].ty.dtype)
        return choose_embedding(weight(args[1], values), target=self.context.target, tokens=tokens).to_json()


def weight(expr: Any, values: dict[Any, Any]) -> Structure:
    """The structure of a variable that is bound to a doping.weight."""
    call = dps_call(values.get(expr))
    assert call is not None and call[0] == "doping.weight", "RecoverStructure runs before this pass"
    return structure_of(text_of(call[1][0]), [array_of(a) for a in call[1][1:]])


def _dict(force: Any) -> dict[str, Any] | None:
    return None if force is None else dict(force)
