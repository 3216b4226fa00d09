"""Vectorised sigmoid and tanh in TensorIR.

TVM's own `T.sigmoid` and `T.tanh` become one call of libm per lane (15.8 us for the gates of H = 650, against 1.7 us here).
exp(x) = 2^n p(r), n = round(x / ln 2), r = x - n ln 2 in [-ln 2 / 2, ln 2 / 2] with ln 2 in two parts (Cody and Waite), and p of
degree 6 with the coefficients of Cephes' expf. Absolute error of sigmoid and tanh: at most 2e-7 (tests/kernels checks a sweep).
A NaN stays a NaN: TVM's min and max return their second operand when a comparison fails, so the constants come first.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.emit import Expr, splat

_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_COEFFICIENTS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
# exp underflows to 2^-126 near -87.3; at 87 the sum 1 + exp is finite still, and 1 / (1 + exp(87)) is 0 to 1e-38.
_LIMIT = 87.0
# tanh is 1 to 2e-13 where |x| exceeds half of this; and exp of what is left for a sigmoid times exp of this is finite still.
_LIMIT_TANH = 30.0

# (x, limit) -> x within [-limit, limit], a NaN staying one: given where min and max of the target drop it.
Clamp = Callable[[Expr, float], Expr]


def exp(x: Expr, lanes: int, limit: float = _LIMIT, clamp: Clamp | None = None) -> Expr:
    """exp(x), x (lanes,) fp32, clamped to [-limit, limit], at most [-87, 87]; relative error at most 1e-7 within."""

    def c(value: float) -> Expr:
        return splat(value, lanes)

    x = T.bind(clamp(x, limit) if clamp else tirx.max(c(-limit), tirx.min(c(limit), x)))
    n = T.bind(tirx.floor(x * c(1.44269504088896341) + c(0.5)))
    r = T.bind(x - n * c(_LN2_HIGH) - n * c(_LN2_LOW))
    p = c(_COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        p = p * r + c(coefficient)
    p = p * (r * r) + (r + c(1.0))
    kind = "int32" if lanes == 1 else f"int32x{lanes}"
    exponent = (tirx.Cast(kind, n) + _int(127, lanes)) << _int(23, lanes)
    return T.bind(p * tirx.reinterpret("float32" if lanes == 1 else f"float32x{lanes}", exponent))


def sigmoid(x: Expr, lanes: int, times: Expr | None = None, clamp: Clamp | None = None) -> Expr:
    """1 / (1 + exp(-x)), or `times` of it."""
    one = splat(1.0, lanes)
    return T.bind((one if times is None else times) / (one + exp(splat(0.0, lanes) - x, lanes, clamp=clamp)))


def tanh(x: Expr, lanes: int) -> Expr:
    """(1 - e) / (1 + e) with e = exp(-2 x)."""
    one = splat(1.0, lanes)
    e = _exp_of_tanh(x, lanes)
    return T.bind((one - e) / (one + e))


def sigmoid_tanh(x: Expr, y: Expr, lanes: int, clamp: Clamp | None = None) -> Expr:
    """sigmoid(x) tanh(y) by one division, absolute error at most 3e-7: (1 - e) / ((1 + exp(-x)) (1 + e)), e = exp(-2 y)."""
    one = splat(1.0, lanes)
    e = _exp_of_tanh(y, lanes, clamp)
    d = exp(splat(0.0, lanes) - x, lanes, _LIMIT - _LIMIT_TANH, clamp)
    return T.bind((one - e) / ((one + d) * (one + e)))


def _exp_of_tanh(x: Expr, lanes: int, clamp: Clamp | None = None) -> Expr:
    return exp(splat(-2.0, lanes) * x, lanes, _LIMIT_TANH, clamp)


def _int(value: int, lanes: int) -> Expr:
    scalar = tirx.const(value, "int32")
    return T.broadcast(scalar, lanes) if lanes > 1 else scalar
