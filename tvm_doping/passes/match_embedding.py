"""MatchEmbedding: rows of a table that is computed from its factors, or is a linear layer's weight, become `doping.embedding`."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from tvm_doping._tvm import (
    GenericConst,
    StringImm,
    definitions,
    dps_call,
    handle,
    op_name,
    rebuild,
    relax,
    replace_main,
    text_of,
)
from tvm_doping.passes.context import Context
from tvm_doping.passes.evaluate import is_fixed, origin
from tvm_doping.passes.naming import bound, layer_name

_INTEGERS = ("int32", "int64")


class MatchEmbedding:
    """take(W, tokens, axis=0, mode="clip") -> doping.embedding(tokens (M,), W (V, D), name) -> (M, D), reshaped as it was.

    W is float32 and computed from constants only, as a doped one is, or a constant that is the weight of a doping.linear, too
    (tied); tokens, of any rank, depend on an input. Any other constant table stays a take, a copy of rows: it has nothing to be
    rebuilt from.
    """

    def __init__(self, context: Context) -> None:
        self.names = context.names

    def __call__(self, mod: Any) -> Any:
        main = mod["main"]
        values = definitions(main)
        calls = map(dps_call, values.values())
        linear = [c[1] for c in calls if c and c[0] == "doping.linear" and len(c[1]) > 3]
        # an output layer without a bias, tied to this table, may have its name
        taken = Counter(text_of(args[3]) for args in linear)
        weights = {handle(args[1].value) for args in linear if isinstance(args[1], GenericConst)}

        def visit(var: Any, value: Any) -> list[Any] | None:
            if not _matches(value, values, weights):
                return None
            table, tokens = value.args
            name = layer_name(self.names, origin(table, values), taken, "embedding")
            sizes, columns = list(tokens.ty.shape), int(table.ty.shape[1])
            before: list[Any] = []
            if len(sizes) != 1:
                count = math.prod(sizes[1:], start=sizes[0]) if sizes else 1
                flat = relax.op.reshape(tokens, relax.ShapeExpr([count]))
                before.append((bound(f"{var.name}_tokens", flat), flat))
                tokens = before[-1][0]
            out = relax.TensorType((tokens.ty.shape[0], columns), "float32")
            call = relax.call_dps_packed("doping.embedding", [tokens, table, StringImm(name)], out_ty=out)
            if len(sizes) == 1:
                return [call]
            rows = bound(f"{var.name}_rows", call)
            return [*before, (rows, call), relax.op.reshape(rows, relax.ShapeExpr([*sizes, columns]))]

        return relax.transform.DeadCodeElimination(["main"])(replace_main(mod, rebuild(main, visit)))


def _matches(expr: Any, values: dict[Any, Any], weights: set[int]) -> bool:
    """weights: the constants that are weights of linear layers."""
    if op_name(expr) != "relax.take" or expr.attrs.axis is None or int(expr.attrs.axis) != 0:
        return False
    table, tokens = expr.args
    return (
        str(expr.attrs.mode) == "clip"
        and (handle(table.value) in weights if isinstance(table, GenericConst) else table in values)
        and len(table.ty.shape) == 2
        and str(table.ty.dtype) == "float32"
        and str(tokens.ty.dtype) in _INTEGERS
        and tokens.ty.shape is not None
        and is_fixed(table, values)
        and not is_fixed(tokens, values)
    )
