"""y += S z in perm32 and perm32_expand: x is looked up in registers, never gathered (AVX-512).

The 32 values of x in a slot's window are two loads, and `vpermi2ps` looks 16 of them up at once. With `masks` (perm32_expand)
the values of a slot are stored without padding, and `vexpandps` puts them into their lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels import primitives
from tvm_doping.kernels.emit import Buffer, Expr, Registers, address, load, splat, split, store, unpacked
from tvm_doping.kernels.plan import Product
from tvm_doping.kernels.rows import Fma, add_rows, row_of, scatter_rows
from tvm_doping.kernels.scope import Scope
from tvm_doping.kernels.values import Rows, scaled, widen
from tvm_doping.sparsity.formats.perm import PERM32

_FULL = 16


def stream(product: Product, scope: Scope) -> None:
    """One stream: two loads of x, a look-up and an FMA a slot, as many chains of FMAs as slots that a group is padded to."""
    slots = Slots(product, scope)
    overlapping = overlapping_registers(product.columns, scope)
    with split(slots.groups, scope.shared) as g:
        acc = Registers(slots.multiple, _FULL)

        def slot(at: Expr, weights: Expr, u: int, acc: Registers = acc) -> None:
            window = address(slots.windows[at])
            low, high = (load(overlapping, (window + part) * _COPIES, _FULL) for part in (0, _FULL))
            indices = tirx.Cast("int32x16", slots.indices[at, T.Ramp(0, 1, _FULL)])
            x = primitives.look_up(low, high, indices, portable=scope.config.portable)
            acc.fma(u, weights, x)

        slots.walk(g, slot)
        total = scaled(acc.total(), slots.scales, g, _FULL)
        if product.params["grouped"]:
            scatter_rows(scope, slots.rows, g, [(total, _FULL)])
        else:
            scope.accumulate(g * _FULL, total)


def tile(product: Product, scope: Scope) -> None:
    """A tile of streams: the lanes of a slot are 16 rows with a column each, or two. Padding costs as much as a nonzero."""
    slots = Slots(product, scope)
    each = int(slots.indices.shape[1]) // _FULL
    by_entry = (
        product.sparse == "perm2x32"
    )  # whose values are a register an entry; those of a lane are else together
    with split(slots.groups, scope.shared) as g:
        stored = Rows(slots.values, _FULL * each, scope.lanes)
        expanded = T.alloc_buffer((_FULL,), "float32")

        def rows(
            lanes: range, fma: Fma, g: Expr = g, stored: Rows = stored, expanded: Buffer = expanded
        ) -> None:
            def slot(at: Expr, weight: Callable[[int], Expr]) -> None:
                window = address(slots.windows[at])
                columns = unpacked(slots.indices, each * lanes.start, each * len(lanes), at)
                for entry, column in enumerate(columns, each * lanes.start):
                    lane, i = divmod(entry, each)
                    fma(lane, weight(i * _FULL + lane if by_entry else entry), window + column)

            def expand(at: Expr, weights: Expr, u: int) -> None:
                store(expanded, 0, weights, _FULL)
                slot(at, lambda lane: expanded[lane])

            if slots.expand:
                slots.walk(g, expand)
            elif stored.narrow:
                first = address(slots.slot_ptr[g])
                entries = range(each * _FULL) if by_entry else range(each * lanes.start, each * lanes.stop)
                stored.each(first, address(slots.slot_ptr[g + 1]) - first, entries, slot)
            else:
                slots.walk(g, lambda at, _, u: slot(at, lambda lane: slots.values[at, lane]))

        add_rows(scope, _FULL, rows, row_of(slots.rows, g * _FULL), slots.scales, g)


def overlapping_registers(columns: int, scope: Scope) -> Buffer:
    """z as registers that begin _STEP columns apart, one after the other: any window is two of them, and aligned."""
    count = -(-columns // _STEP) + _COPIES
    registers = T.alloc_buffer((count * _FULL,), "float32")
    with split(count, scope.shared) as r:
        store(registers, r * _FULL, load(scope.z, r * _STEP, _FULL), _FULL)
    return registers


_STEP = PERM32.step
_COPIES = _FULL // _STEP


class Slots:
    """The loop over the slots of a group."""

    def __init__(self, product: Product, scope: Scope) -> None:
        arrays = {name[2:]: array for name, array in scope.arrays.items() if name.startswith("S.")}
        self.rows, self.slot_ptr, self.windows, self.indices, self.values = (
            arrays[name] for name in ("rows", "slot_ptr", "windows", "indices", "values")
        )
        self.expand = "masks" in arrays
        self.masks: Buffer = arrays.get("masks")
        self.value_ptr: Buffer = arrays.get("value_ptr")
        self.scales: Buffer | None = arrays.get("scales")
        self.portable = scope.config.portable
        self.multiple = product.params["multiple"]
        self.word = f"uint{16 * self.multiple}"
        self.groups = int(self.slot_ptr.shape[0]) - 1
        # Opaque, so that LLVM keeps it: `vexpandps` that zeroes the other lanes waits on AMD for whatever its destination held
        # before (4.7 cycles instead of 1); one that merges into a copy of this register waits for nothing.
        self.zero = T.bind(self._opaque(splat(0.0, _FULL))) if self.expand else None

    def walk(self, g: Expr, slot: Any) -> None:
        """slot(slot, its weights, its number below `multiple`) for each slot of group g."""
        first, end = (address(self.slot_ptr[g + i]) // self.multiple for i in (0, 1))
        with T.serial(first, end) as r:
            start = T.bind(r * self.multiple)
            if self.expand:
                word, values = T.bind(self._masks(start)), address(self.value_ptr[r])
            for u in range(self.multiple):
                weights = (
                    self._expanded(values, word, u)
                    if self.expand
                    else widen(self.values[start + u, T.Ramp(0, 1, _FULL)])
                )
                slot(start + u, weights, u)

    def _masks(self, start: Expr) -> Expr:
        """The masks of a round's slots in one word, those of the first one lowest."""
        if self.multiple == 1:
            return self.masks[start]
        return tirx.reinterpret(self.word, self.masks[T.Ramp(start, 1, self.multiple)])

    def _expanded(self, first: Expr, word: Expr, u: int) -> Expr:
        """Slot u's values, which follow those of the slots below it in the word: put into the lanes of its mask, 0 elsewhere."""
        before = tirx.popcount(word & tirx.const((1 << 16 * u) - 1, self.word)) if u else 0
        mask = T.bind(tirx.Cast("uint16", word >> tirx.const(16 * u, self.word)))
        # The fence keeps the load apart: `vexpandps` from memory is microcoded on AMD.
        packed = widen(load(self.values, first + tirx.Cast("int64", before) if u else first, _FULL))
        return primitives.expand(self._opaque(packed), mask, self.zero, portable=self.portable)

    def _opaque(self, vector: Expr) -> Expr:
        return primitives.opaque(vector, portable=self.portable)
