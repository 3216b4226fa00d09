"""Questions to TVM's trees of statements and expressions, and substitution in them."""

from __future__ import annotations

from typing import Any

import tvm_ffi

from tvm_doping._tvm import tirx
from tvm_doping.kernels.emit import Expr


def found(root: Any, kind: type | tuple[type, ...]) -> list[Any]:
    """All nodes of a kind, or of several."""
    nodes: list[Any] = []
    tvm_ffi.structural_walk(root, (kind, lambda node: nodes.append(node)))
    return nodes


def uses(expr: Expr, var: Any) -> bool:
    """Whether the variable occurs in the expression."""
    return any(used.same_as(var) for used in found(expr, tirx.Var))


def replaced(expr: Expr, var: Any, value: Expr) -> Expr:
    """The expression with the value in place of the variable; what it binds itself gets names of its own."""
    return tvm_ffi.structural_map(expr, (tirx.Var, lambda v: value if v.same_as(var) else v))
