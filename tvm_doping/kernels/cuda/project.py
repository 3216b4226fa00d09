"""W z + b of many rows z at once, 32 of them side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.cuda.low_rank import of_tiles
from tvm_doping.kernels.cuda.operand import Operand
from tvm_doping.kernels.cuda.words import WARP, Arena, Block, Buffer, Expr, Piece, launch


@contextmanager
def products(operand: Operand, z: Buffer, bias: Buffer, tiles: Expr) -> Iterator[tuple[Block, Expr, Piece]]:
    """A launch of blocks of (part, tile): gives each its block, its tile, and the sums [row of the part][lane] of W z + b.

    z: the tiles of `transpose`; bias is in the order of the parts' rows.
    """
    cut, columns, low = operand.cut, operand.product.columns, operand.low_rank
    if low is not None:
        of_tiles(low, z, tiles)
    arena = Arena()
    sums = arena.take(cut.rows * WARP)
    operand.take_tile(arena)
    with launch(cut.parts, tiles, operand.threads) as block:
        arena.open()
        tile = T.bind(tirx.Cast("int64", block.y))
        base = T.bind(tile * (columns * WARP))

        def read(column: Expr, lane: Expr) -> Expr:
            return z[base + (column * WARP + lane)]

        if low is not None:
            low.use(block, tile)
        operand.tile(block, read, sums, lambda row: bias[block.x * cut.rows + row])
        yield block, tile, sums


def project(operand: Operand, z: Buffer, bias: Buffer, target: Buffer, rows: int, tiles: Expr) -> None:
    """target[((tile * parts + part) * rows + r) * 32 + lane] = (W z + b)[row r of the part]; rows are the first of each part that
    count.
    """
    with products(operand, z, bias, tiles) as (block, tile, sums):
        first = T.bind((tile * operand.cut.parts + block.x) * rows)
        with block.each(rows, warps=True) as row:
            T.buffer_store(target, sums[row * WARP + block.lane], [(first + row) * WARP + block.lane])
