"""y += S z in perm64: z in bfloat16 is looked up in registers and multiplied two columns a lane (AVX-512 BW and BF16).

The 64 values of z in a slot's window are two loads, `vpermi2w` looks 32 of them up at once, and `vdpbf16ps` adds two products a
lane to 16 fp32 sums: the instructions of perm32 for half the slots, and about half the bytes.

z is rounded to bfloat16 for a tile of streams too, whose arithmetic is that of fp32: a stream has the same result whatever
streams run beside it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels import perm32, primitives
from tvm_doping.kernels.emit import Buffer, Expr, Registers, address, load, split, store
from tvm_doping.kernels.perm32 import Slots
from tvm_doping.kernels.plan import Product
from tvm_doping.kernels.rows import scatter_rows
from tvm_doping.kernels.scope import Scope
from tvm_doping.kernels.values import widen
from tvm_doping.sparsity.formats.perm64 import Perm64

_FULL = 16  # rows, and fp32 sums of one register
_WORDS = 32  # of one register
_STEP = Perm64.reach.step
_COPIES = _WORDS // _STEP


def stream(product: Product, scope: Scope) -> None:
    """One stream: z is rounded once, then two loads of it, a look-up and a dot product of pairs a slot."""
    slots, portable = Slots(product, scope), scope.config.portable
    with primitives.bf16(portable=portable):
        overlapping = _overlapping(product.columns, scope)
        with split(slots.groups, scope.shared) as g:
            acc = Registers(slots.multiple, _FULL)

            def slot(at: Expr, _: Any, u: int, acc: Registers = acc) -> None:
                window = address(slots.windows[at])
                low, high = (load(overlapping, (window + part) * _COPIES, _WORDS) for part in (0, _WORDS))
                indices = tirx.Cast("int16x32", slots.indices[at, T.Ramp(0, 1, _WORDS)])
                z = primitives.look_up(low, high, indices, portable=portable)
                weights = tirx.reinterpret("int16x32", slots.values[at, T.Ramp(0, 1, _WORDS)])
                store(acc.buffers[u], 0, primitives.dot_bf16(acc[u], z, weights, portable=portable), _FULL)

            slots.walk(g, slot)
            if product.params["grouped"]:
                scatter_rows(scope, slots.rows, g, [(acc.total(), _FULL)])
            else:
                scope.accumulate(g * _FULL, acc.total())


def tile(product: Product, scope: Scope) -> None:
    """A tile of streams: that of perm32 with weights widened, on z rounded."""
    size, portable = product.columns * scope.width, scope.config.portable
    rounded = T.alloc_buffer((size,), "float32")
    with primitives.bf16(portable=portable), split(size // _FULL, scope.shared) as i:
        words = primitives.round_bf16(load(scope.z, i * _FULL, _FULL), portable=portable)
        store(rounded, i * _FULL, widen(tirx.reinterpret("uint16x16", words)), _FULL)
    perm32.tile(product, replace(scope, z=rounded))


def _overlapping(columns: int, scope: Scope) -> Buffer:
    """z in bfloat16 as registers that begin _STEP columns apart: any window is two of them, and aligned."""
    count = -(-columns // _STEP) + _COPIES
    registers = T.alloc_buffer((count * _WORDS,), "int16")
    with split(count, scope.shared) as r:
        for half in range(0, _WORDS, _FULL):
            values = load(scope.z, r * _STEP + half, _FULL)
            words = primitives.round_bf16(values, portable=scope.config.portable)
            store(registers, r * _WORDS + half, words, _FULL)
    return registers
