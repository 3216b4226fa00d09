"""The values of expressions that depend on constants only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tvm_doping._tvm import GenericConst, array_of, dps_call, op_name, relax, text_of, tirx, tvm
from tvm_doping.passes.reference import weight_of

Definitions = dict[Any, Any]


def evaluate(expr: Any, values: Definitions) -> np.ndarray | None:
    """The value, or None if it depends on an input. `values` are the definitions of the function's variables.

    What NumPy has no line for below is compiled by TVM and run.
    """
    if not is_fixed(expr, values):
        return None
    found = _numpy(expr, values)
    return _compiled(expr, values) if found is None else found


def is_fixed(expr: Any, values: Definitions) -> bool:
    """Whether the expression depends on constants only."""
    seen: set[Any] = set()
    pending = [expr]
    while pending:
        e = pending.pop()
        if isinstance(e, relax.Var):
            if e in seen:
                continue
            seen.add(e)
            if e not in values:
                return False
            pending.append(values[e])
        elif isinstance(e, relax.Call):
            call = dps_call(e)
            if call is not None and call[0] != "doping.weight":
                return False
            if call is None and not op_name(e).startswith("relax."):
                return False
            pending += call[1] if call is not None else list(e.args)
        elif isinstance(e, relax.Tuple):
            pending += list(e.fields)
        elif isinstance(e, relax.TupleGetItem):
            pending.append(e.tuple_value)
        elif isinstance(e, relax.ShapeExpr):
            if not all(isinstance(d, tirx.IntImm) for d in e.values):
                return False
        elif isinstance(e, relax.If):
            return False
    return True


def origin(expr: Any, values: Definitions) -> list[Any]:
    """The constants that an expression depends on, first to last."""
    if isinstance(expr, relax.Var):
        return origin(values[expr], values) if expr in values else []
    if isinstance(expr, GenericConst):
        return [expr]
    parts = list(expr.args) if isinstance(expr, relax.Call) else list(getattr(expr, "fields", []))
    if isinstance(expr, relax.TupleGetItem):
        parts = [expr.tuple_value]
    return [found for part in parts for found in origin(part, values)]


def _numpy(expr: Any, values: Definitions) -> np.ndarray | None:
    if isinstance(expr, relax.Var):
        return _numpy(values[expr], values)
    constant = array_of(expr)
    if constant is not None:
        return constant
    call = dps_call(expr)
    if call is not None:
        return weight_of(text_of(call[1][0]), [array_of(a) for a in call[1][1:]])
    rule = _RULES.get(op_name(expr))
    if rule is None:
        return None
    first = expr.args[0]
    parts = list(first.fields) if isinstance(first, relax.Tuple) else list(expr.args)
    tensors = [_numpy(part, values) for part in parts if not isinstance(part, relax.ShapeExpr)]
    known = [t for t in tensors if t is not None]
    if len(known) != len(tensors):
        return None
    shape = tuple(int(d) for d in expr.ty.shape)
    dtype = str(expr.ty.dtype)
    return np.ascontiguousarray(rule(expr, known, shape), dtype=dtype)


Rule = Callable[[Any, list[np.ndarray], tuple[int, ...]], np.ndarray]


def _axes(expr: Any) -> list[int] | None:
    return None if expr.attrs.axes is None else [int(a) for a in expr.attrs.axes]


_RULES: dict[str, Rule] = {
    "relax.add": lambda e, a, s: a[0] + a[1],
    "relax.subtract": lambda e, a, s: a[0] - a[1],
    "relax.multiply": lambda e, a, s: a[0] * a[1],
    "relax.matmul": lambda e, a, s: a[0] @ a[1],
    "relax.reshape": lambda e, a, s: a[0].reshape(s),
    "relax.expand_dims": lambda e, a, s: a[0].reshape(s),
    "relax.squeeze": lambda e, a, s: a[0].reshape(s),
    "relax.broadcast_to": lambda e, a, s: np.broadcast_to(a[0], s),
    "relax.astype": lambda e, a, s: a[0],
    "relax.permute_dims": lambda e, a, s: np.transpose(a[0], _axes(e)),
    "relax.concat": lambda e, a, s: np.concatenate(a, axis=int(e.attrs.axis)),
    "relax.full": lambda e, a, s: np.full(s, a[0]),
    "relax.zeros": lambda e, a, s: np.zeros(s),
    "relax.ones": lambda e, a, s: np.ones(s),
}


def _compiled(expr: Any, values: Definitions) -> np.ndarray:
    """The value of one expression, computed by TVM."""
    order: list[Any] = []

    def collect(e: Any) -> None:
        if isinstance(e, relax.Var):
            if e not in order:
                collect(values[e])
                order.append(e)
            return
        parts = list(e.args) if isinstance(e, relax.Call) else list(getattr(e, "fields", []))
        for part in [*parts, *([e.tuple_value] if isinstance(e, relax.TupleGetItem) else [])]:
            collect(part)

    collect(expr)
    result = relax.Var("value", expr.ty)
    bound = [relax.VarBinding(var, values[var]) for var in order]
    body = relax.SeqExpr([relax.DataflowBlock([*bound, relax.VarBinding(result, expr)])], result)
    function = relax.Function([], body, expr.ty).with_attr("global_symbol", "main")
    executable = tvm.compile(tvm.IRModule({"main": function}), tvm.target.Target({"kind": "llvm"}))
    value: np.ndarray = relax.VirtualMachine(executable, tvm.cpu())["main"]().numpy()
    return value
