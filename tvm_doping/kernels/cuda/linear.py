"""One linear layer y = x W^T + b over M independent rows on CUDA: rows of x one by one, or 32 side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tvm_doping._tvm import IRBuilder, T, tirx, tvm
from tvm_doping.kernels.cuda import parts
from tvm_doping.kernels.cuda.low_rank import of_streams
from tvm_doping.kernels.cuda.operand import Operand
from tvm_doping.kernels.cuda.parts import Cut
from tvm_doping.kernels.cuda.project import products
from tvm_doping.kernels.cuda.transpose import Pairs, transpose
from tvm_doping.kernels.cuda.words import WARP, Arena, Block, Buffer, Expr, launch, when
from tvm_doping.kernels.plan import LinearPlan
from tvm_doping.kernels.product import parameters


def cut_of(plan: LinearPlan) -> Cut:
    """How the layer's rows are divided."""
    assert plan.config.grid is not None
    return Cut(units=plan.outputs, gates=1, parts=plan.config.grid.parts)


def pack(plan: LinearPlan, w: Any, bias: np.ndarray) -> dict[str, np.ndarray]:
    """The layer's arrays, in the order in which the function takes them. bias (O,)."""
    cut = cut_of(plan)
    return {"bias": parts.permuted_vector(bias, cut), **parts.pack(plan.product, w, cut)}


def reference(plan: LinearPlan, arrays: dict[str, np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """The layer in NumPy on packed arrays."""
    cut = cut_of(plan)
    bias = parts.restored_vector(arrays["bias"], cut)
    return [(parts.reference(plan.product, arrays, cut)(x) + bias).astype("float32")]


def prim_func(plan: LinearPlan, arrays: Mapping[str, np.ndarray], name: str = "linear") -> tvm.tirx.PrimFunc:
    """The function (x, *arrays, y) of the layer; all of them in the GPU's memory."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "doping.kernel": "linear", "doping.format": plan.product.format})
        rows = tirx.Var("rows", "int64")
        x = T.match_buffer(T.arg("x", T.handle()), (rows, plan.inputs))
        packed = parameters(arrays)
        y = T.match_buffer(T.arg("y", T.handle()), (rows, plan.outputs))
        assert plan.config.grid is not None
        cut, grid = cut_of(plan), plan.config.grid

        def operand() -> Operand:
            return Operand(plan.product, arrays, packed, cut, grid.threads)

        with T.If(rows < grid.tile_from):
            with T.Then():
                _one_by_one(operand(), x, packed["bias"], y, rows)
            with T.Else():
                _side_by_side(operand(), x, packed["bias"], y, rows)
    return builder.get()


def _one_by_one(operand: Operand, x: Buffer, bias: Buffer, y: Buffer, rows: Expr) -> None:
    cut, low = operand.cut, operand.low_rank
    of_streams([] if low is None else [(low, lambda row, k: x[row, k])], rows)
    arena = Arena()
    z = arena.take(operand.product.columns)
    operand.take_stream(arena)
    with launch(cut.parts, rows, operand.threads) as block:
        arena.open()
        if operand.reads_z:
            with block.each(operand.product.columns) as i:
                z.store(i, x[block.y, i])
        if low is not None:
            low.read(block, block.y)
        block.sync()
        operand.first_product(block, z)
        operand.stream(block, z)
        block.sync()
        with block.each(cut.each) as row, when(_output(block, cut, row) < cut.units):
            value = bias[block.x * cut.rows + row] + operand.total(row)
            T.buffer_store(y, value, [block.y, _output(block, cut, row)])


def _side_by_side(operand: Operand, x: Buffer, bias: Buffer, y: Buffer, rows: Expr) -> None:
    cut, columns = operand.cut, operand.product.columns
    pairs = Pairs(per_step=rows)
    tiles = T.bind(pairs.tiles)
    across = T.alloc_buffer((tiles * (columns * WARP),), "float32")
    transpose(x, across, columns, pairs)
    # neighbours write neighbours: a row's outputs, of one pair after the other
    with products(operand, across, bias, tiles) as (block, _, sums), block.each(cut.each * WARP) as i:
        n, row = T.bind(block.y * WARP + i // cut.each), T.bind(i % cut.each)
        with when(tirx.all(n < rows, _output(block, cut, row) < cut.units)):
            T.buffer_store(y, sums[row * WARP + i // cut.each], [n, _output(block, cut, row)])


def _output(block: Block, cut: Cut, row: Expr) -> Expr:
    """The output that a row of the part is."""
    return block.x * cut.each + row
