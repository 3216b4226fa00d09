"""MatchLinear: x W^T + b with fixed W and b becomes `doping.linear`."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from tvm_doping._tvm import (
    StringImm,
    constant,
    count_uses,
    definitions,
    op_name,
    rebuild,
    relax,
    replace_main,
)
from tvm_doping.passes.context import Context
from tvm_doping.passes.evaluate import evaluate, is_fixed, origin
from tvm_doping.passes.naming import bound, layer_name


class MatchLinear:
    """matmul(x, permute_dims(W)) with an optional add of a vector -> doping.linear(x (M, I), W (O, I), b (O,), name).

    W and b depend on constants only; x has any rank, float32. matmul(x, V) with a fixed V (I, O) is taken
    too, its W being V^T. A product of two inputs stays a matmul.
    """

    def __init__(self, context: Context) -> None:
        self.names = context.names

    def __call__(self, mod: Any) -> Any:
        main = mod["main"]
        values = definitions(main)
        products = {v: e for v, e in values.items() if self._matches(e, values)}
        if not products:
            return mod
        uses = count_uses(main)
        sums = {v: m for v, e in values.items() if (m := _sum(e, products, values, uses))}
        absorbed = {product for product, _ in sums.values()}
        taken: Counter[str] = Counter()

        def visit(var: Any, value: Any) -> list[Any] | None:
            if var in sums:
                product, bias = sums[var]
                return self._linear(var, products[product], bias, values, taken)
            if var in products and var not in absorbed:
                return self._linear(var, value, None, values, taken)
            return None

        return relax.transform.DeadCodeElimination(["main"])(replace_main(mod, rebuild(main, visit)))

    def _matches(self, expr: Any, values: dict[Any, Any]) -> bool:
        if op_name(expr) != "relax.matmul":
            return False
        x, w = expr.args
        return (
            str(x.ty.dtype) == str(w.ty.dtype) == "float32"
            and len(w.ty.shape) == 2
            and x.ty.shape is not None
            and is_fixed(w, values)
            and not is_fixed(x, values)
        )

    def _linear(
        self, var: Any, product: Any, bias: Any, values: dict[Any, Any], taken: Counter[str]
    ) -> list[Any]:
        x, transposed = product.args
        weight, before = self._weight(var, transposed, values)
        outputs, inputs = (int(d) for d in weight.ty.shape)
        if bias is None:
            bias, constants = constant(np.zeros(outputs, "float32")), origin(weight, values)
        else:
            constants = [*origin(weight, values), *origin(bias, values)]
        rows = list(x.ty.shape)[:-1]
        if len(rows) != 1:
            flat = relax.op.reshape(
                x, relax.ShapeExpr([math.prod(rows[1:], start=rows[0]) if rows else 1, inputs])
            )
            before.append((bound(f"{var.name}_x", flat), flat))
            x = before[-1][0]
        m = x.ty.shape[0]
        call = relax.call_dps_packed(
            "doping.linear",
            [x, weight, bias, StringImm(layer_name(self.names, constants, taken, "linear"))],
            out_ty=relax.TensorType((m, outputs), "float32"),
        )
        if len(rows) == 1:
            return [*before, call]
        y = bound(f"{var.name}_y", call)
        return [*before, (y, call), relax.op.reshape(y, relax.ShapeExpr([*rows, outputs]))]

    def _weight(self, var: Any, transposed: Any, values: dict[Any, Any]) -> tuple[Any, list[Any]]:
        """W (O, I), and what must be bound for it."""
        found: Any = values.get(transposed)
        if op_name(found) == "relax.permute_dims":
            return found.args[0], []
        back = relax.op.permute_dims(transposed)
        w = bound(f"{var.name}_w", back)
        return w, [(w, back)]


def _sum(expr: Any, products: dict[Any, Any], values: dict[Any, Any], uses: Counter[Any]) -> Any:
    """(product, bias) if the expression adds a fixed vector to a product that nothing else uses."""
    if op_name(expr) != "relax.add":
        return None
    for product, bias in (expr.args, reversed(expr.args)):
        if product not in products or uses[product] != 1 or len(bias.ty.shape) != 1:
            continue
        width = products[product].args[1].ty.shape[1]
        if int(bias.ty.shape[0]) == int(width) and is_fixed(bias, values):
            value = evaluate(bias, values) if isinstance(bias, relax.Var) else None
            return product, bias if value is None else constant(value)
    return None
