"""y += S z in perm2x32: a window of 64 columns is four registers of z, which serve two entries of every lane (AVX-512).

`vpermi2ps` looks an entry up in the first two registers and in the last two, and bit 5 of its index chooses. What takes the time
is loading (two a cycle): of the four registers, half of one for the indices and one of values for each entry, 3.5 for 16 entries
where perm32 needs four, and there are fewer of them, as a wider window fills more of a slot.
"""

from __future__ import annotations

from typing import Any

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels import primitives
from tvm_doping.kernels.emit import Expr, Registers, address, load, split
from tvm_doping.kernels.perm32 import Slots, overlapping_registers
from tvm_doping.kernels.plan import Product
from tvm_doping.kernels.rows import scatter_rows
from tvm_doping.kernels.scope import Scope
from tvm_doping.kernels.values import scaled, widen
from tvm_doping.sparsity.formats.perm2x32 import Perm2x32

_FULL = 16
_COPIES = _FULL // Perm2x32.reach.step
_EACH, _WINDOW = Perm2x32.reach.each, Perm2x32.reach.window
_INDEX_BITS, _UPPER = 8, 32  # of a lane's word of indices; the bit of an index that chooses a look-up


def stream(product: Product, scope: Scope) -> None:
    """One stream: four loads of z a slot, then for each of a lane's two entries two look-ups, a choice and an FMA."""
    slots = Slots(product, scope)
    registers = overlapping_registers(product.columns, scope)
    with split(slots.groups, scope.shared) as g:
        acc = Registers(slots.multiple * _EACH, _FULL)

        def slot(at: Expr, _: Any, u: int, acc: Registers = acc) -> None:
            window = address(slots.windows[at])
            z = [
                T.bind(load(registers, (window + part) * _COPIES, _FULL)) for part in range(0, _WINDOW, _FULL)
            ]
            words = T.bind(
                tirx.Cast(
                    "int32x16", tirx.reinterpret("uint16x16", slots.indices[at, T.Ramp(0, 1, 2 * _FULL)])
                )
            )
            for entry in range(_EACH):
                indices = words >> _i32(_INDEX_BITS * entry) if entry else words
                low, high = (
                    primitives.look_up(z[i], z[i + 1], indices, portable=scope.config.portable)
                    for i in (0, 2)
                )
                upper = (indices & _i32(_UPPER)) != _i32(0)
                weights = widen(slots.values[at, T.Ramp(entry * _FULL, 1, _FULL)])
                acc.fma(u * _EACH + entry, weights, tirx.Select(upper, high, low))

        slots.walk(g, slot)
        total = scaled(acc.total(), slots.scales, g, _FULL)
        if product.params["grouped"]:
            scatter_rows(scope, slots.rows, g, [(total, _FULL)])
        else:
            scope.accumulate(g * _FULL, total)


def _i32(value: int) -> Expr:
    return T.broadcast(tirx.const(value, "int32"), _FULL)
