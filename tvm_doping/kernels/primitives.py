"""The AVX-512 instructions of the look-up formats, each with a portable twin of the same meaning.

bfloat16 is 16-bit words (int16): TVM's code generator crashes on vectors of LLVM's bfloat type, so the instructions that take it
are called through functions of LLVM IR that cast, and are inlined (`bf16`).

The twins go through memory and are slow: no schedule chooses them (Config.portable). They let the kernels that are built of
these instructions be tested on CPUs without AVX-512, where LLVM splits the vectors of 16 lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.emit import Expr, store

LANES = 16


def look_up(low: Expr, high: Expr, indices: Expr, *, portable: bool) -> Expr:
    """Lane l: element indices[l] of low and high, one after the other; bits of an index above those that takes are ignored.

    16 floats each, indices int32x16 (`vpermi2ps`), or 32 words each, indices int16x32 (`vpermi2w`).
    """
    kind, size, lanes = ("float32", "32", 16) if str(low.ty.dtype) == "float32x16" else ("int16", "16", 32)
    if not portable:
        name = f"llvm.x86.avx512.vpermi2var.{'ps' if lanes == LANES else 'hi'}.512"
        return T.call_llvm_pure_intrin(f"{kind}x{lanes}", name, low, indices, high)
    values = T.alloc_buffer((2 * lanes,), kind)
    chosen = T.alloc_buffer((lanes,), "int" + size)
    store(values, 0, low, lanes)
    store(values, lanes, high, lanes)
    store(chosen, 0, indices, lanes)
    last = tirx.const(2 * lanes - 1, "int32")
    return T.bind(_vector([values[tirx.Cast("int32", chosen[lane]) & last] for lane in range(lanes)]))


def expand(packed: Expr, mask: Expr, zero: Expr, *, portable: bool) -> Expr:
    """Lane l: 0 where bit l of the uint16 mask is 0, else the next value of `packed`. `vexpandps`.

    zero: a register of zeros that LLVM does not see through (`opaque`).
    """
    if portable:
        values = T.alloc_buffer((LANES,), "float32")
        store(values, 0, packed, LANES)
        lanes = []
        for lane in range(LANES):
            before = tirx.popcount(mask & tirx.const((1 << lane) - 1, "uint16")) if lane else 0
            there = (mask & tirx.const(1 << lane, "uint16")) != tirx.const(0, "uint16")
            value = values[tirx.Cast("int32", before) if lane else 0]
            lanes.append(tirx.Select(there, value, tirx.const(0.0, "float32")))
        return T.bind(_vector(lanes))
    # TensorIR has no 16-bit mask type; LLVM recognises the comparison of each lane's bit as a move to a mask register.
    bits = T.Shuffle([tirx.const(1 << lane, "uint16") for lane in range(LANES)], list(range(LANES)))
    chosen = (T.broadcast(mask, LANES) & bits) != T.broadcast(tirx.const(0, "uint16"), LANES)
    return T.bind(
        T.call_llvm_pure_intrin("float32x16", "llvm.x86.avx512.mask.expand.v16f32", packed, zero, chosen)
    )


def opaque(vector: Any, *, portable: bool) -> Any:
    """The same vector, through which LLVM does not look."""
    return (
        vector if portable else T.call_llvm_pure_intrin("float32x16", "llvm.arithmetic.fence.v16f32", vector)
    )


def bf16(*, portable: bool) -> AbstractContextManager[Any]:
    """The scope in which `round_bf16` and `dot_bf16` may be emitted."""
    return nullcontext() if portable else T.attr(0, "pragma_import_llvm", _BF16)


def round_bf16(vector: Expr, *, portable: bool, lanes: int = LANES) -> Expr:
    """Floats as words, rounded to nearest, ties to even. `vcvtneps2bf16`, of 16, which takes subnormal numbers for 0."""
    if not portable:
        return tirx.call_pure_extern("int16x16", "doping_round_bf16", vector)
    bits = T.bind(tirx.reinterpret(f"uint32x{lanes}", vector))
    u32 = _u32(lanes)
    odd = (bits >> u32(16)) & u32(1)
    rounded = tirx.Select(vector == vector, bits + u32(0x7FFF) + odd, bits | u32(0x400000))
    return tirx.Cast(f"int16x{lanes}", rounded >> u32(16))


def dot_bf16(sums: Expr, a: Expr, b: Expr, *, portable: bool, lanes: int = LANES) -> Expr:
    """sums (floats) + a[2 l] b[2 l] + a[2 l + 1] b[2 l + 1] for each lane l, of twice as many words a and b. `vdpbf16ps`, of 16."""
    if not portable:
        return tirx.call_pure_extern("float32x16", "doping_dot_bf16", sums, a, b)
    u32 = _u32(lanes)
    pairs = [T.bind(tirx.reinterpret(f"uint32x{lanes}", words)) for words in (a, b)]
    odd = [tirx.reinterpret(f"float32x{lanes}", pair & u32(0xFFFF0000)) for pair in pairs]
    even = [tirx.reinterpret(f"float32x{lanes}", pair << u32(16)) for pair in pairs]
    return sums + odd[0] * odd[1] + even[0] * even[1]


def _u32(lanes: int) -> Callable[[int], Expr]:
    return lambda value: T.broadcast(tirx.const(value, "uint32"), lanes)


def _vector(scalars: list[Expr]) -> Expr:
    return T.Shuffle(scalars, list(range(len(scalars))))


# linkonce_odr: every kernel of a library brings its own, and none is left where all calls are inlined.
_BF16 = """
define linkonce_odr <16 x float> @doping_dot_bf16(<16 x float> %sums, <32 x i16> %a, <32 x i16> %b) alwaysinline nounwind {
  %x = bitcast <32 x i16> %a to <32 x bfloat>
  %y = bitcast <32 x i16> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sums, <32 x bfloat> %x, <32 x bfloat> %y)
  ret <16 x float> %r
}
define linkonce_odr <16 x i16> @doping_round_bf16(<16 x float> %x) alwaysinline nounwind {
  %y = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %x)
  %r = bitcast <16 x bfloat> %y to <16 x i16>
  ret <16 x i16> %r
}
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
declare <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)
"""
