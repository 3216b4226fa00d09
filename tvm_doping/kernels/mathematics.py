"""exp, sigmoid, tanh and erf of TVM's own functions as arithmetic, which LLVM vectorises; TVM itself calls libm for every value.

    exp(x)   the square of the `activations`' exp(x / 2), which reaches from 0 to infinity; relative error at most 4e-7
    erf(x)   the quotient of two polynomials in x^2, x clamped to [-4, 4] (coefficients of Eigen's and XLA's erf)

Absolute error of sigmoid and tanh: at most 2e-7, of erf 5e-7 (tests/kernels checks a sweep). A NaN stays a NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm_ffi

from tvm_doping._tvm import IRBuilder, T, tirx, tvm
from tvm_doping.kernels import activations
from tvm_doping.kernels.emit import Expr, splat

_ABOVE = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_BELOW = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def replace_calls(function: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """The function with arithmetic in place of its calls of exp, sigmoid, tanh and erf of single float32 values."""

    def visit(call: Any) -> Any:
        emit = _CALLS.get(str(getattr(call.op, "name", "")))
        if emit is None or str(call.args[0].ty.dtype) != "float32":
            return call
        return _expression(emit, call.args[0])

    return function.with_body(tvm_ffi.structural_map(function.body, (tvm.ir.Call, visit)))


def _expression(emit: Callable[[Expr], Expr], x: Expr) -> Expr:
    """What `emit` makes of x: the values that it binds by statements, bound within an expression."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name("f")
        result = emit(T.bind(x))
        T.evaluate(result)
    for statement in reversed(list(builder.get().body)[:-1]):
        result = tirx.Let(statement.var, statement.value, result)
    return result


def _exp(x: Expr) -> Expr:
    root = activations.exp(x * splat(0.5, 1), 1)
    return root * root


def _erf(x: Expr) -> Expr:
    # the constants first: TVM's min and max return their second operand, a NaN, when a comparison fails
    x = T.bind(tirx.max(splat(-4.0, 1), tirx.min(splat(4.0, 1), x)))
    square = T.bind(x * x)

    def polynomial(coefficients: tuple[float, ...]) -> Expr:
        value = splat(coefficients[0], 1)
        for coefficient in coefficients[1:]:
            value = value * square + splat(coefficient, 1)
        return value

    return x * polynomial(_ABOVE) / polynomial(_BELOW)


_CALLS: dict[str, Callable[[Expr], Expr]] = {
    "tirx.exp": _exp,
    "tirx.sigmoid": lambda x: activations.sigmoid(x, 1),
    "tirx.tanh": lambda x: activations.tanh(x, 1),
    "tirx.erf": _erf,
}
