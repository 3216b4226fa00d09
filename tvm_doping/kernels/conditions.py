"""Loops of TVM's own functions without conditions on their variable: a concatenation or a padding is copied piece by piece.

    for v in 0..n: y[v] = a[v] if v < m else b[v - m]   ->   for v in 0..m: y[v] = a[v]; for v in m..n: y[v] = b[v - m]

LLVM vectorises the pieces; with the condition in it, it takes the values one by one.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi

from tvm_doping._tvm import tirx, tvm
from tvm_doping.kernels.emit import Expr
from tvm_doping.kernels.trees import found, replaced

# Comparison -> (which side is the larger one, by how much at least).
_COMPARISONS: dict[type, tuple[int, int]] = {
    tirx.LE: (1, 0),
    tirx.LT: (1, 1),
    tirx.GE: (0, 0),
    tirx.GT: (0, 1),
}
# Pieces of a loop: code for each is no longer worth it where there are many.
_MOST = 8


def split_at_conditions(function: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """The function, lowered to loops, each loop cut where a condition of an if_then_else in it changes."""
    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, _split)))


def _split(loop: Any, pieces: int = 1) -> Any:
    if loop.kind != tirx.ForKind.SERIAL or loop.step is not None or pieces >= _MOST:
        return loop
    for condition in _conditions(loop.body):
        threshold = _threshold(condition, loop.loop_var)
        if threshold is None:
            continue
        first, then = threshold
        first = tirx.max(loop.min, tirx.min(loop.min + loop.extent, first))
        parts = (
            _piece(loop, condition, not then, loop.min, first),
            _piece(loop, condition, then, first, loop.min + loop.extent),
        )
        return tirx.SeqStmt([_split(part, pieces + 1) for part in parts])
    return loop


def _piece(loop: Any, condition: Any, holds: bool, start: Expr, end: Expr) -> Any:
    """The loop from start to end, where the condition holds throughout, or not."""
    truth = tirx.const(holds, "bool")
    var = tirx.Var(loop.loop_var.name, str(loop.loop_var.ty.dtype))

    def settle(node: Any) -> Any:
        return truth if type(node) in _COMPARISONS and tvm_ffi.structural_equal(node, condition) else node

    body = tvm_ffi.structural_map(loop.body, (tuple(_COMPARISONS), settle))
    body = tvm_ffi.structural_map(body, (tvm.ir.Call, _choose))
    body = replaced(body, loop.loop_var, start + var)
    extent = tvm.sym.Analyzer().simplify(end - start)
    return tirx.For(var, tirx.const(0, str(var.ty.dtype)), extent, tirx.ForKind.SERIAL, body)


def _choose(call: Any) -> Any:
    if not _conditional(call):
        return call
    condition = tvm.sym.Analyzer().simplify(call.args[0])
    if isinstance(condition, tirx.IntImm):
        return call.args[1] if int(condition) else call.args[2]
    return tirx.if_then_else(condition, call.args[1], call.args[2])


def _conditional(call: Any) -> bool:
    return str(getattr(call.op, "name", "")) == "prim.if_then_else"


def _conditions(body: Any) -> list[Any]:
    """The comparisons in conditions of the body's if_then_else."""
    calls = filter(_conditional, found(body, tvm.ir.Call))
    return [node for call in calls for node in found(call.args[0], tuple(_COMPARISONS))]


def _threshold(condition: Any, v: Any) -> tuple[Expr, bool] | None:
    """(t, then): the condition holds for v >= t if `then`, else for v < t; None for one that does not move by one with v."""
    larger, least = _COMPARISONS[type(condition)]
    sides = (condition.a, condition.b)
    if str(sides[0].ty.dtype) != str(v.ty.dtype):
        return None
    over = sides[larger] - sides[1 - larger] - least  # the condition: over >= 0
    analyzer = tvm.sym.Analyzer()
    zero = tirx.const(0, str(v.ty.dtype))
    slope = analyzer.simplify(replaced(over, v, v + 1) - over)
    if not isinstance(slope, tirx.IntImm) or int(slope) not in (1, -1):
        return None
    if int(slope) == 1:
        return analyzer.simplify(zero - replaced(over, v, zero)), True
    return analyzer.simplify(replaced(over, v, zero) + 1), False
