"""RecoverStructure: weights become `doping.weight`, the structure that they have as data."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tvm_doping import structures
from tvm_doping._tvm import StringImm, constant, definitions, dps_call, handle, rebuild, relax, replace_main
from tvm_doping.errors import UnsupportedModel
from tvm_doping.passes.context import Context
from tvm_doping.passes.evaluate import evaluate, is_fixed
from tvm_doping.passes.expressions import match_structure

# A weight below 4 KB stays in the L1 cache and takes well under 0.1 us whatever its structure: not worth the search.
SMALLEST = 1024
# Positions of the weights and of the biases among the arguments.
_WEIGHTS = {"doping.lstm": (3, 4), "doping.linear": (1,), "doping.embedding": (1,)}
_BIASES = {"doping.lstm": (5, 6), "doping.linear": (2,), "doping.embedding": ()}


class RecoverStructure:
    """The weights of doping.lstm, doping.linear and doping.embedding -> doping.weight(spec, *arrays).

    An expression B (x) C + S, U V + S, [D ; U V] + S or S alone is matched; any other fixed value is computed
    and searched for structure (`structures.recover`). What has none becomes Dense. Whatever is found is
    rebuilt and compared with the value that it stands for. force={"structure": "dense"} leaves all of them dense.
    """

    def __init__(self, context: Context) -> None:
        self.names = context.names
        self.dense = (context.force or {}).get("structure") == "dense"

    def __call__(self, mod: Any) -> Any:
        main = mod["main"]
        values = definitions(main)
        known: dict[Any, tuple[str, list[Any]]] = {}

        def visit(var: Any, value: Any) -> list[Any] | None:
            call = dps_call(value)
            if call is None or call[0] not in _WEIGHTS:
                return None
            operator, args = call
            before: list[Any] = []
            for position in _WEIGHTS[operator]:
                args[position] = self._weight(
                    args[position], f"{var.name}_w{position}", values, known, before
                )
            for position in _BIASES[operator]:
                args[position] = _fixed(args[position], values)
            types = list(value.ty.fields) if isinstance(value.ty, relax.TupleType) else [value.ty]
            return [*before, relax.call_dps_packed(operator, args, out_ty=types)]

        return relax.transform.DeadCodeElimination(["main"])(replace_main(mod, rebuild(main, visit)))

    def _weight(
        self, weight: Any, name: str, values: dict[Any, Any], known: dict[Any, Any], before: list[Any]
    ) -> Any:
        """The variable of the doping.weight to use instead, bound in `before` unless it is one already."""
        found = dps_call(values.get(weight))
        if found is not None and found[0] == "doping.weight":
            return weight
        key = weight if isinstance(weight, relax.Var) else handle(weight.value)
        if key not in known:
            structure = recover(weight, values, dense=self.dense)
            arrays = structure.arrays()
            spec = json.dumps({**structures.to_spec(structure), "arrays": list(arrays)})
            known[key] = (spec, [constant(array) for array in arrays.values()])
        spec, constants = known[key]
        out = relax.TensorType(weight.ty.shape, "float32")
        before.append(
            (
                relax.DataflowVar(name, out),
                relax.call_dps_packed("doping.weight", [StringImm(spec), *constants], out_ty=out),
            )
        )
        return before[-1][0]


def recover(weight: Any, values: dict[Any, Any], *, dense: bool = False) -> structures.Structure:
    """The structure of a weight expression (m, n); Dense, whatever it is, if so asked."""
    found = None if dense else match_structure(weight, values)
    if found is not None:
        return found
    W = evaluate(weight, values)
    if W is None:
        raise UnsupportedModel(
            "a weight of a layer",
            "a value that is known when the model is compiled",
            "one computed from the model's inputs",
            "Compute it from parameters only.",
        )
    if dense or W.size < SMALLEST:
        return structures.Dense(W)
    return structures.recover(W)


def _fixed(bias: Any, values: dict[Any, Any]) -> Any:
    if not isinstance(bias, relax.Var) or not is_fixed(bias, values):
        return bias
    value = evaluate(bias, values)
    return bias if value is None else constant(np.ascontiguousarray(value))
