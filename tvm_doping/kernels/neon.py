"""Arm's dot-product instructions, each with a portable twin of the same meaning (as those of AVX-512 have in `primitives`).

A register is 16 bytes: 8 words of bfloat16 (int16, as TVM takes no vectors of LLVM's bfloat type), 8 halves, or 16 bytes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels import primitives
from tvm_doping.kernels.emit import Expr
from tvm_doping.kernels.values import widen

LANES = 4


def bf16(*, portable: bool) -> AbstractContextManager[Any]:
    """The scope in which `round_bf16`, `bfdot` and `bfmmla` may be emitted."""
    return nullcontext() if portable else T.attr(0, "pragma_import_llvm", _BF16)


def round_bf16(vector: Expr, *, portable: bool) -> Expr:
    """4 floats as words, to nearest, ties to even. `bfcvtn`."""
    if portable:
        return primitives.round_bf16(vector, portable=True, lanes=LANES)
    return tirx.call_pure_extern("int16x4", "doping_neon_round_bf16", vector)


def bfdot(sums: Expr, a: Expr, b: Expr, *, portable: bool) -> Expr:
    """sums + a[2 l] b[2 l] + a[2 l + 1] b[2 l + 1] for each lane l of 4 floats, of 8 words a and b."""
    if portable:
        return primitives.dot_bf16(sums, a, b, portable=True, lanes=LANES)
    return tirx.call_pure_extern("float32x4", "doping_bfdot", sums, a, b)


def bfmmla(sums: Expr, a: Expr, b: Expr, *, portable: bool) -> Expr:
    """sums (2, 2) floats + A B^T for A and B (2, 4) words, row by row."""
    if not portable:
        return tirx.call_pure_extern("float32x4", "doping_bfmmla", sums, a, b)
    for i in range(4):
        x = widen(T.Shuffle([tirx.reinterpret("uint16x8", a)], [i + 4 * k for k in _ROWS]))
        y = widen(T.Shuffle([tirx.reinterpret("uint16x8", b)], [i + 4 * k for k in _COLUMNS]))
        sums = sums + x * y
    return sums


def sdot(sums: Expr, a: Expr, b: Expr, *, portable: bool) -> Expr:
    """sums + a[4 l] b[4 l] + .. + a[4 l + 3] b[4 l + 3] for each lane l of 4 int32, of 16 int8 a and b."""
    if not portable:
        return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", sums, a, b)
    for i in range(4):
        x, y = (tirx.Cast("int32x4", T.Shuffle([v], list(range(i, 16, 4)))) for v in (a, b))
        sums = sums + x * y
    return sums


def smmla(sums: Expr, a: Expr, b: Expr, *, portable: bool) -> Expr:
    """sums (2, 2) + A B^T for A and B (2, 8) int8, row by row."""
    if not portable:
        return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.smmla.v4i32.v16i8", sums, a, b)
    for i in range(8):
        x = tirx.Cast("int32x4", T.Shuffle([a], [i + 8 * k for k in _ROWS]))
        y = tirx.Cast("int32x4", T.Shuffle([b], [i + 8 * k for k in _COLUMNS]))
        sums = sums + x * y
    return sums


def fmlal(sums: Expr, a: Expr, b: Expr, *, high: bool, portable: bool) -> Expr:
    """sums (4 floats) + a b of the low, or the high, halves of 8 a and b. `fmlal`, `fmlal2`."""
    if not portable:
        name = f"llvm.aarch64.neon.fmlal{'2' if high else ''}.v4f32.v8f16"
        return T.call_llvm_pure_intrin("float32x4", name, sums, a, b)
    x, y = (halves(v, high=high) for v in (a, b))
    return sums + x * y


def fmla(sums: Expr, a: Expr, b: Expr, *, portable: bool) -> Expr:
    """sums + a b of 8 halves, the sum rounded to a half. `fmla`, which LLVM makes of the two operations."""
    if not portable:
        return sums + a * b
    wide = [tirx.Cast("float64x8", v) for v in (sums, a, b)]
    return tirx.Cast("float16x8", wide[0] + wide[1] * wide[2])


def halves(vector: Expr, *, high: bool) -> Expr:
    """The low, or the high, four of 8 halves as floats."""
    first = 4 if high else 0
    return tirx.Cast("float32x4", T.Shuffle([vector], list(range(first, first + 4))))


# Of a 2 x 2 matrix, row by row.
_ROWS, _COLUMNS = (0, 0, 1, 1), (0, 1, 0, 1)

# linkonce_odr: every kernel of a library brings its own, and none is left where all calls are inlined.
_BF16 = """
define linkonce_odr <4 x float> @doping_bfdot(<4 x float> %sums, <8 x i16> %a, <8 x i16> %b) alwaysinline nounwind {
  %x = bitcast <8 x i16> %a to <8 x bfloat>
  %y = bitcast <8 x i16> %b to <8 x bfloat>
  %r = call <4 x float> @llvm.aarch64.neon.bfdot.v4f32.v8bf16(<4 x float> %sums, <8 x bfloat> %x, <8 x bfloat> %y)
  ret <4 x float> %r
}
define linkonce_odr <4 x float> @doping_bfmmla(<4 x float> %sums, <8 x i16> %a, <8 x i16> %b) alwaysinline nounwind {
  %x = bitcast <8 x i16> %a to <8 x bfloat>
  %y = bitcast <8 x i16> %b to <8 x bfloat>
  %r = call <4 x float> @llvm.aarch64.neon.bfmmla(<4 x float> %sums, <8 x bfloat> %x, <8 x bfloat> %y)
  ret <4 x float> %r
}
define linkonce_odr <4 x i16> @doping_neon_round_bf16(<4 x float> %x) alwaysinline nounwind {
  %y = fptrunc <4 x float> %x to <4 x bfloat>
  %r = bitcast <4 x bfloat> %y to <4 x i16>
  ret <4 x i16> %r
}
declare <4 x float> @llvm.aarch64.neon.bfmmla(<4 x float>, <8 x bfloat>, <8 x bfloat>)
declare <4 x float> @llvm.aarch64.neon.bfdot.v4f32.v8bf16(<4 x float>, <8 x bfloat>, <8 x bfloat>)
"""
