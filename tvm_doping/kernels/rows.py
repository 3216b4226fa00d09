"""Formats that hold several rows side by side: their sums for a tile of streams, and the way back to the rows' places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm_doping._tvm import T
from tvm_doping.kernels.emit import Buffer, Expr, Registers, splat, store
from tvm_doping.kernels.scope import Scope
from tvm_doping.kernels.values import scaled

Fma = Callable[[int, Expr, Expr], None]  # (lane, weight, column): row of lane += weight * z[column]


def add_rows(
    scope: Scope,
    count: int,
    walk: Callable[[range, Fma], None],
    row: Callable[[int], Expr],
    scales: Buffer | None = None,
    run: Expr = 0,
) -> None:
    """y[row(lane)] += the sum of what walk() hands to fma() for that lane, for a tile of streams; times scales[run] if given.

    The accumulators of as many rows as fit the register file are summed together; walk() runs again for the others.
    """
    vectors = scope.vectors
    fit = max(1, (scope.config.registers - 2 - vectors) // vectors)
    together = next(r for r in range(min(count, fit), 0, -1) if count % r == 0)
    for start in range(0, count, together):
        acc = Registers(together * vectors, scope.lanes)

        def fma(lane: int, weight: Expr, column: Expr, acc: Registers = acc, start: int = start) -> None:
            vector = splat(weight, scope.lanes)
            for v in range(vectors):
                acc.fma((lane - start) * vectors + v, vector, scope.input(column, v))

        walk(range(start, start + together), fma)
        for lane in range(start, start + together):
            at = T.bind(row(lane))
            for v in range(vectors):
                total = scaled(acc[(lane - start) * vectors + v], scales, run, scope.lanes)
                scope.accumulate(at, total, v)


def row_of(rows: Any, first: Expr) -> Callable[[int], Expr]:
    """The row of each lane of the group that begins at `first`: rows[first + lane], or first + lane without `rows`."""
    return lambda lane: first + lane if rows is None else rows[first + lane]


def scatter_rows(scope: Scope, rows: Any, g: Expr, vectors: list[tuple[Expr, int]]) -> None:
    """y[rows[n g + l]] += lane l of the n lanes of the (vector, width) pairs: n scalar additions, small beside a group's slots."""
    count = sum(width for _, width in vectors)
    lanes = T.alloc_buffer((count,), "float32")
    at = 0
    for vector, width in vectors:
        store(lanes, at, vector, width)
        at += width
    for i in range(count):
        row = T.bind(rows[g * count + i])
        T.buffer_store(scope.y, scope.y[row] + lanes[i], [row])
