"""Tiles of 8 streams on registers of 16 lanes: two rows a register, each of 8 streams (AVX-512).

What bounds a tile is loading, two vectors a cycle: with a row a register each nonzero loads its weight, as a broadcast, and
8 values of z, for half a register's work. Here the weights of up to 16 rows are one load, a permutation in registers (`vpermps`,
two a cycle) hands each half of a register its row's weight, and the two columns of z are joined as they are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm_doping._tvm import T
from tvm_doping.kernels.emit import Buffer, Expr, address, load, splat, split, store
from tvm_doping.kernels.scope import Scope
from tvm_doping.kernels.values import scaled, widen

_HALF, _FULL = 8, 16
# TVM gives small buffers that do not live at once one storage, and LLVM then keeps an accumulator of 8 lanes in half of one of 16,
# whose other half each use merges anew. Not with a buffer 16 times as large: all sums are one, its first register unused.
_APART = 1


def paired(scope: Scope) -> bool:
    """Whether a tile's streams fill half of a register that the target has."""
    return scope.width == scope.lanes == _HALF and scope.config.full == _FULL


def tile(
    scope: Scope,
    pointers: Buffer,
    values: Buffer,
    columns: Callable[[Expr], list[Expr]],
    row: Callable[[Expr], Callable[[int], Expr]],
    scales: Buffer | None,
) -> None:
    """y[row(g)(r)] += sum over k of values[k, r] z[columns(k)[r]], k from pointers[g] to pointers[g + 1]; times scales[g] if given.

    Where columns(k) is one column, it serves all rows. The rows of a group are an even number, at most 16.
    """
    rows = int(values.shape[1])
    with split(int(pointers.shape[0]) - 1, scope.shared) as g:
        buffer = T.alloc_buffer(((_FULL // 2 + _APART) * _FULL,), "float32")
        sums = [(_APART + pair) * _FULL for pair in range(rows // 2)]
        for at in sums:
            store(buffer, at, splat(0.0, _FULL), _FULL)
        first = address(pointers[g])
        with T.serial(0, address(pointers[g + 1]) - first) as k:
            weights = T.bind(widen(load(values, 0, rows, first + k)))
            z = [scope.input(column) for column in columns(first + k)]
            one = T.bind(_joined(z[0], z[0])) if len(z) == 1 else None
            for pair, at in enumerate(sums):
                low, high = 2 * pair, 2 * pair + 1
                spread = T.Shuffle([weights] * (_FULL // rows), [low] * _HALF + [high] * _HALF)
                x = _joined(z[low], z[high]) if one is None else one
                store(buffer, at, load(buffer, at, _FULL) + spread * x, _FULL)
        for pair, at in enumerate(sums):
            total = T.bind(scaled(load(buffer, at, _FULL), scales, g, _FULL))
            for half in range(2):
                part = T.Shuffle([total], list(range(half * _HALF, (half + 1) * _HALF)))
                scope.accumulate(T.bind(row(g)(2 * pair + half)), part)


def _joined(low: Any, high: Any) -> Any:
    return T.Shuffle([low, high], list(range(_FULL)))
