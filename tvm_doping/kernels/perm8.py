"""y += S z in perm8: z is looked up in one register, never gathered (AVX2).

Of the 8 values of z in a slot's window `vpermps` hands each of the 8 lanes its own. On AMD Zen 3 a slot takes 2.1 cycles, as
long as 2.5 nonzeros of a soft gather.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.emit import Expr, Registers, add, address, load, prefetch, split
from tvm_doping.kernels.plan import Product
from tvm_doping.kernels.rows import Fma, add_rows, row_of, scatter_rows
from tvm_doping.kernels.scope import Scope
from tvm_doping.kernels.values import Rows, for_chunks, scaled, widen

_FULL = 8
_BITS = 4  # of an index
# Bytes of values asked for ahead of the slot at work: an S that does not fit the L3 takes 0.6 to 0.8 of the time (Zen 3; the same
# from 5 to 20 KB), one that does 2 % more. The hardware's prefetcher stops at the end of a page, 4 KB.
_AHEAD, _LINE = 5120, 64


def stream(product: Product, scope: Scope) -> None:
    """One stream: a load of z, a shift of indices, a look-up and an FMA a slot, as many chains of FMAs as a group is padded to."""
    rows, slot_ptr, windows, indices, values = _arrays(scope)
    multiple, scales = product.params["multiple"], scope.arrays.get("S.scales")
    size = _FULL * np.dtype(str(values.dtype)).itemsize  # of a slot's values
    with split(int(slot_ptr.shape[0]) - 1, scope.shared) as g:
        acc = Registers(multiple, _FULL)
        first, end = (address(slot_ptr[g + i]) // multiple for i in (0, 1))
        with T.serial(first, end) as r:
            word = T.bind(tirx.Cast("uint32x8", load(indices, 0, _FULL, r)))
            for u in range(multiple):
                at = T.bind(r * multiple + u)
                if u * size % _LINE == 0:
                    prefetch(values, at + _AHEAD // size, 0)
                index = word >> T.broadcast(tirx.const(_BITS * u, "uint32"), _FULL) if u else word
                x = _look_up(load(scope.z, address(windows[at]), _FULL), index)
                acc.fma(u, widen(load(values, 0, _FULL, at)), x)
        total = scaled(acc.total(), scales, g, _FULL)
        if product.params["grouped"]:
            scatter_rows(scope, rows, g, [(total, _FULL)])
        else:
            add(scope.y, g * _FULL, total, _FULL)


def tile(product: Product, scope: Scope) -> None:
    """A tile of streams: the lanes of a slot are 8 rows with a column each. Padding costs as much as a nonzero."""
    rows, slot_ptr, windows, indices, values = _arrays(scope)
    multiple, scales = product.params["multiple"], scope.arrays.get("S.scales")
    each = 64 // (_BITS * multiple)  # lanes whose indices one 64-bit load brings
    with split(int(slot_ptr.shape[0]) - 1, scope.shared) as g:
        stored = Rows(values, _FULL, scope.lanes)

        def walk(lanes: range, fma: Fma, g: Expr = g, stored: Rows = stored) -> None:
            first, end = (address(slot_ptr[g + i]) // multiple for i in (0, 1))

            def slots(r: Expr, weight: Callable[[int, int], Expr]) -> None:
                some = range(lanes.start // each, -(-lanes.stop // each))
                words = {
                    i: T.bind(tirx.reinterpret("uint64", load(indices, i * each, each, r))) for i in some
                }
                for u in range(multiple):
                    window = address(windows[r * multiple + u])
                    for lane in lanes:
                        shift = tirx.const(_BITS * (lane % each * multiple + u), "uint64")
                        index = address((words[lane // each] >> shift) & tirx.const(_FULL - 1, "uint64"))
                        fma(lane, weight(u, lane), window + index)

            def widened(start: Expr, size: Expr) -> None:
                begin = T.bind(first + start)
                stored.fill(lambda k: (begin * multiple + k,), size * multiple, lanes)
                with T.serial(0, size) as k:
                    slots(begin + k, lambda u, lane: stored.scalar(k * multiple + u, lane))

            if stored.narrow:
                for_chunks(end - first, stored.chunk // multiple, widened)
                return
            with T.serial(first, end) as r:
                slots(r, lambda u, lane: values[r * multiple + u, lane])

        add_rows(scope, _FULL, walk, row_of(rows, g * _FULL), scales, g)


def _look_up(window: Expr, index: Expr) -> Expr:
    """Lane l: element index[l] of the window, by the lower three bits of an index."""
    # The fence keeps the load apart: `vpermps` from memory takes AMD Zen 3 twice as long as a load and one from a register.
    apart = T.call_llvm_pure_intrin("float32x8", "llvm.arithmetic.fence.v8f32", window)
    return T.call_llvm_pure_intrin(
        "float32x8", "llvm.x86.avx2.permps", apart, tirx.reinterpret("int32x8", index)
    )


def _arrays(scope: Scope) -> tuple[Any, ...]:
    return tuple(scope.arrays["S." + name] for name in ("rows", "slot_ptr", "windows", "indices", "values"))
