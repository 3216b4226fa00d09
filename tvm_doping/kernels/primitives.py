"""The AVX-512 instructions of the look-up formats, each with a portable twin of the same meaning.

The twins go through memory and are slow: no schedule chooses them (Config.portable). They let the kernels that are built of
these instructions be tested on CPUs without AVX-512, where LLVM splits the vectors of 16 lanes.
"""

from __future__ import annotations

from typing import Any

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.emit import Expr, store

LANES = 16


def look_up(low: Expr, high: Expr, indices: Expr, *, portable: bool) -> Expr:
    """Lane l: element indices[l], 0..31, of the 32 values of low and high. `vpermi2ps`."""
    if not portable:
        name = "llvm.x86.avx512.vpermi2var.ps.512"
        return T.call_llvm_pure_intrin("float32x16", name, low, indices, high)
    values = T.alloc_buffer((2 * LANES,), "float32")
    chosen = T.alloc_buffer((LANES,), "int32")
    store(values, 0, low, LANES)
    store(values, LANES, high, LANES)
    store(chosen, 0, indices, LANES)
    return T.bind(_vector([values[chosen[lane]] for lane in range(LANES)]))


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


def _vector(scalars: list[Expr]) -> Expr:
    return T.Shuffle(scalars, list(range(len(scalars))))
