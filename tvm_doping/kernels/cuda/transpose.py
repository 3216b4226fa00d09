"""From rows of values to 32 rows side by side, [tile][column][lane]: what kernels read that give a lane to each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.cuda.words import WARP, Arena, Buffer, Expr, launch, when

_THREADS = 256


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """(step, stream) pairs in tiles of 32: a step begins a tile of its own, and fills its last one up by repeating a stream."""

    per_step: Expr
    steps: Expr = 1

    @property
    def tiles_of_step(self) -> Expr:
        return (self.per_step + (WARP - 1)) // WARP

    @property
    def tiles(self) -> Expr:
        return self.tiles_of_step * self.steps

    def row(self, tile: Expr, lane: Expr) -> Expr:
        """The row of a lane of a tile."""
        step, inside = tile // self.tiles_of_step, tile % self.tiles_of_step
        return step * self.per_step + tirx.min(inside * WARP + lane, self.per_step - 1)


def transpose(
    source: Buffer, target: Buffer, columns: int, pairs: Pairs, counter: Buffer | None = None
) -> None:
    """target[(tile * columns + k) * 32 + lane] = source's row pairs.row(tile, lane), column k; counter[0] = 0 on the way.

    Squares of 32 go through shared memory, so that both sides are read and written along their memory; its rows are a value longer
    than a warp, or all of a column would lie in one bank.
    """
    squares = -(-columns // WARP)
    flat = T.decl_buffer((_size(source),), "float32", data=source.data)
    arena = Arena()
    square = arena.take(WARP * (WARP + 1))
    with launch(pairs.tiles, squares, _THREADS) as block:
        arena.open()
        if counter is not None:
            with when(tirx.all(block.x == 0, block.y == 0, block.tx == 0)):
                T.buffer_store(counter, tirx.const(0, "int32"), [0])
        tile, first = T.bind(tirx.Cast("int64", block.x)), T.bind(block.y * WARP)
        with block.each(WARP, warps=True) as lane:
            row = T.bind(pairs.row(tile, lane))
            with _inside(first + block.lane, columns):
                square.store(lane * (WARP + 1) + block.lane, flat[row * columns + (first + block.lane)])
        block.sync()
        with block.each(WARP, warps=True) as k, _inside(first + k, columns):
            value = square[block.lane * (WARP + 1) + k]
            T.buffer_store(target, value, [(tile * columns + (first + k)) * WARP + block.lane])


def _inside(column: Expr, columns: int) -> Any:
    """Only columns that there are; columns of whole squares all are."""
    return when(column < columns)


def _size(buffer: Buffer) -> Expr:
    size: Expr = 1
    for extent in buffer.shape:
        size = extent * size
    return size
