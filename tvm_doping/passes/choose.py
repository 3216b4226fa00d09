"""Choose: every layer gets a plan, from the target's schedules."""

from __future__ import annotations

from typing import Any

import numpy as np

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
from tvm_doping.kernels import EmbeddingPlan, LinearPlan, LstmPlan
from tvm_doping.passes.context import Context
from tvm_doping.passes.reference import structure_of
from tvm_doping.schedules import choose_embedding, choose_linear, choose_lstm
from tvm_doping.structures import Structure

# How many arguments a layer has before it has a plan, the last one of which is the plan's place.
_UNPLANNED = {"doping.lstm": 9, "doping.linear": 4, "doping.embedding": 3}


class Choose:
    """doping.lstm, doping.linear and doping.embedding -> the same with the plan, as JSON, as their last argument.

    The plan of an embedding follows that of the first linear layer with the same weight (`choose_embedding`).
    """

    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, mod: Any) -> Any:
        values = definitions(mod["main"])
        layers = {
            var: call
            for var, value in values.items()
            if (call := dps_call(value)) is not None and len(call[1]) == _UNPLANNED.get(call[0])
        }
        linear = {
            var: self._linear(args, values)
            for var, (operator, args) in layers.items()
            if operator == "doping.linear"
        }
        sources = [(layers[var][1], plan) for var, plan in linear.items()]

        def plan_of(var: Any) -> LstmPlan | LinearPlan | EmbeddingPlan:
            operator, args = layers[var]
            if operator == "doping.embedding":
                return self._embedding(args, values, sources)
            return linear[var] if var in linear else self._lstm(args, values)

        def visit(var: Any, value: Any) -> list[Any] | None:
            if var not in layers:
                return None
            operator, args = layers[var]
            plan = StringImm(plan_of(var).to_json())
            return [relax.call_dps_packed(operator, [*args, plan], out_ty=out_types(value))]

        return replace_main(mod, rebuild(mod["main"], visit))

    def _lstm(self, args: list[Any], values: dict[Any, Any]) -> LstmPlan:
        c = self.context
        w_ih, w_hh = (weight(args[i], values) for i in (3, 4))
        return choose_lstm(
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

    def _linear(self, args: list[Any], values: dict[Any, Any]) -> LinearPlan:
        c = self.context
        return choose_linear(
            weight(args[1], values),
            target=c.target,
            batch=c.batch,
            steps=c.steps,
            precision=c.precision,
            threads=c.threads,
            force=_dict(c.force),
            records=c.records,
        )

    def _embedding(
        self, args: list[Any], values: dict[Any, Any], sources: list[tuple[list[Any], LinearPlan]]
    ) -> EmbeddingPlan:
        """sources: the arguments and the plan of each linear layer."""
        same = ((text_of(other[3]), plan) for other, plan in sources if _same(args[1], other[1], values))
        return choose_embedding(
            weight(args[1], values),
            target=self.context.target,
            tokens=str(args[0].ty.dtype),
            tied=next(same, None),
        )


def _same(one: Any, other: Any, values: dict[Any, Any]) -> bool:
    """Whether two variables that are bound to a doping.weight have the same value, as a tied weight does."""
    (spec, *arrays), (other_spec, *others) = (_data(expr, values) for expr in (one, other))
    pairs = zip(map(array_of, arrays), map(array_of, others), strict=False)  # of one spec as many arrays
    return text_of(spec) == text_of(other_spec) and all(
        a is not None and b is not None and np.array_equal(a, b) for a, b in pairs
    )


def weight(expr: Any, values: dict[Any, Any]) -> Structure:
    """The structure of a variable that is bound to a doping.weight."""
    spec, *arrays = _data(expr, values)
    return structure_of(text_of(spec), [array_of(a) for a in arrays])


def _data(expr: Any, values: dict[Any, Any]) -> list[Any]:
    """The arguments of the doping.weight that a variable is bound to: its spec and its arrays."""
    call = dps_call(values.get(expr))
    assert call is not None and call[0] == "doping.weight", "RecoverStructure runs before this pass"
    return call[1]


def _dict(force: Any) -> dict[str, Any] | None:
    return None if force is None else dict(force)
