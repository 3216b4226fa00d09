"""y += S z in perm32 and perm32_expand: x is looked up in registers, never gathered (AVX-512).

16 rows times stripes of 32 columns: the 32 values of x sit in two registers, and `vpermi2ps` looks 16 of them up at once. Cells of
a group are sorted by their number of slots, so that each loop has a body of constant length. With `masks` (perm32_expand) the
values of a slot are stored without padding, and `vexpandps` puts them into their lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.emit import Counter, Expr, Registers, const, load, splat, store
from tvm_doping.kernels.plan import Product
from tvm_doping.kernels.rows import Fma, add_rows, row_of, scatter_rows
from tvm_doping.kernels.scope import Scope

_FULL = 16


def stream(product: Product, scope: Scope) -> None:
    """One stream: a look-up and an FMA a slot."""
    walker = _Walker(product, scope)
    with T.serial(0, walker.groups) as g:
        acc = Registers(2, _FULL)
        low_high: list[Expr] = []

        def enter(column: Expr, low_high: list[Expr] = low_high) -> None:
            low_high[:] = [T.bind(load(scope.z, column + at, _FULL)) for at in (0, 16)]

        def slot(
            at: Expr, weights: Expr, j: int, low_high: list[Expr] = low_high, acc: Registers = acc
        ) -> None:
            indices = tirx.Cast("int32x16", walker.indices[at, T.Ramp(0, 1, _FULL)])
            low, high = low_high
            acc.fma(j % 2, weights, T.call_llvm_pure_intrin("float32x16", _LOOK_UP, low, indices, high))

        walker.walk(g, enter, slot)
        if product.params["sort"]:
            scatter_rows(scope, walker.rows, g, [(acc.total(), _FULL)])
        else:
            scope.accumulate(g * _FULL, acc.total())


def tile(product: Product, scope: Scope) -> None:
    """A tile of streams: the lanes of a slot are 16 rows with a column each. Padding costs here as much as a nonzero."""
    walker = _Walker(product, scope)
    expanded = T.alloc_buffer((_FULL,), "float32")
    with T.serial(0, walker.groups) as g:

        def rows(lanes: range, fma: Fma, g: Expr = g) -> None:
            columns: list[Expr] = []

            def slot(at: Expr, weights: Expr, j: int) -> None:
                if walker.expand:
                    store(expanded, 0, weights, _FULL)
                for lane in lanes:
                    weight = expanded[lane] if walker.expand else walker.values[at, lane]
                    fma(lane, weight, columns[0] + tirx.Cast("int32", walker.indices[at, lane]))

            def enter(column: Expr) -> None:
                columns[:] = [column]

            walker.walk(g, enter, slot, unroll=False)

        add_rows(scope, _FULL, rows, row_of(walker.rows, g * _FULL))


_LOOK_UP = "llvm.x86.avx512.vpermi2var.ps.512"


class _Walker:
    """The loops over the cells and slots of a group."""

    def __init__(self, product: Product, scope: Scope) -> None:
        self.arrays = {name[2:]: array for name, array in scope.arrays.items() if name.startswith("S.")}
        self.max_slots = product.params["max_slots"]
        self.expand = "masks" in self.arrays
        self.groups = int(self.arrays["counts"].shape[0])
        self.rows, self.indices, self.values = (self.arrays[name] for name in ("rows", "indices", "values"))

    def walk(
        self,
        g: Expr,
        enter: Callable[[Expr], None],
        slot: Callable[[Expr, Expr, int], None],
        unroll: bool = True,
    ) -> None:
        """enter(first column) at each cell; slot(slot, its weights, its number in the cell) at each slot of it (0 in a loop)."""
        cell, first = Counter(self.arrays["cell_ptr"][g]), Counter(self.arrays["slot_ptr"][g])
        value = Counter(self.arrays["value_ptr"][g]) if self.expand else None
        for slots in range(1, self.max_slots + 1):
            cells = T.bind(self.arrays["counts"][g, slots - 1])
            with T.serial(0, cells) as i:
                enter(T.bind(tirx.Cast("int32", self.arrays["stripes"][cell.value + i]) * 32))
                if unroll:
                    for j in range(slots):
                        at = T.bind(first.value + i * slots + j)
                        slot(at, self._weights(at, value), j)
                else:
                    with T.serial(0, slots) as k:
                        at = T.bind(first.value + i * slots + k)
                        slot(at, self._weights(at, value), 0)
            cell.advance(cells)
            first.advance(cells * slots)

    def _weights(self, at: Expr, value: Counter | None) -> Expr:
        if value is None:
            return self.values[at, T.Ramp(0, 1, _FULL)]
        mask = T.bind(tirx.Cast("int32", self.arrays["masks"][at]))
        vector = T.bind(_expand(load(self.values, value.value, _FULL), mask))
        value.advance(tirx.popcount(mask))
        return vector


def _expand(packed: Any, mask: Expr) -> Expr:
    """The first values of `packed` at the lanes whose bit of `mask` is set, in order; 0 elsewhere.

    TensorIR has no 16-bit mask type; LLVM recognises the comparison of each lane's bit as a move to a mask register. The fence
    keeps the load apart: `vexpandps` from memory is microcoded on AMD, from a register it is two operations.
    """
    bits = T.Shuffle([const(1 << lane) for lane in range(_FULL)], list(range(_FULL)))
    chosen = (T.broadcast(mask, _FULL) & bits) != T.broadcast(const(0), _FULL)
    loaded = T.call_llvm_pure_intrin("float32x16", "llvm.arithmetic.fence.v16f32", packed)
    return T.call_llvm_pure_intrin(
        "float32x16", "llvm.x86.avx512.mask.expand.v16f32", loaded, splat(0.0, _FULL), chosen
    )  # fmt: skip
