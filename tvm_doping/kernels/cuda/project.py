"""W z + b of many rows z at once, 32 of them side by side."""

from __future__ import annotations

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.cuda.operand import Operand
from tvm_doping.kernels.cuda.words import WARP, Arena, Buffer, Expr, launch


def project(operand: Operand, z: Buffer, bias: Buffer, target: Buffer, rows: int, tiles: Expr) -> None:
    """target[((tile * parts + part) * rows + r) * 32 + lane] = (W z + b)[row r of the part], for the tiles of `transpose`.

    bias is in the order of the parts' rows; rows are the first of each part that count.
    """
    cut, columns = operand.cut, operand.product.columns
    arena = Arena()
    y = arena.take(cut.rows * WARP)
    operand.take_tile(arena)
    with launch(cut.parts, tiles, operand.threads) as block:
        arena.open()
        tile = T.bind(tirx.Cast("int64", block.y))
        base = T.bind(tile * (columns * WARP))

        def read(column: Expr) -> Expr:
            return z[base + (column * WARP + block.lane)]

        operand.tile(block, read, y, lambda row: bias[block.x * cut.rows + row])
        first = T.bind((tile * cut.parts + block.x) * rows)
        with block.each(rows, warps=True) as row:
            T.buffer_store(target, y[row * WARP + block.lane], [(first + row) * WARP + block.lane])
