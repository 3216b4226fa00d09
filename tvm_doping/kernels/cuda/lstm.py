"""One LSTM layer in one direction on CUDA, as one host function that launches what the numbers of steps and streams ask for.

The equations are those of `kernels.lstm`. Blocks own hidden units (`parts`); h alone travels between them.

    one step, few streams    one launch: both products and the cell; what a session replays as a CUDA graph
    more steps               the inputs of all steps are projected at once, 32 (step, stream) pairs side by side; then one launch
                             for all steps, the weights kept in shared memory, with a barrier of all blocks between two steps
    many streams             the same with 32 streams side by side, a lane each, x and h transposed to [column][stream]: one step by
                             blocks of (part, tile of 32); in more, each block takes the tiles one after the other

A low rank adds a launch for V x, and a barrier a step for V h, to each (`low_rank`). Only launches with a barrier are cooperative.

fp32, or values of S and of dense weights in fp16, bf16 or int8; sums are fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tvm_doping._tvm import IRBuilder, T, tirx, tvm
from tvm_doping.kernels.cuda import parts
from tvm_doping.kernels.cuda.cell import Cell
from tvm_doping.kernels.cuda.low_rank import of_streams, of_tiles
from tvm_doping.kernels.cuda.operand import Operand
from tvm_doping.kernels.cuda.parts import Cut
from tvm_doping.kernels.cuda.project import project
from tvm_doping.kernels.cuda.transpose import Pairs, transpose
from tvm_doping.kernels.cuda.words import WARP, Arena, Buffer, Expr, grid_barrier, int32, launch, when
from tvm_doping.kernels.plan import LstmPlan
from tvm_doping.kernels.product import parameters, select

GATES = 4


def cut_of(plan: LstmPlan) -> Cut:
    """How the layer's rows are divided."""
    assert plan.config.grid is not None
    return Cut(units=plan.hidden, gates=GATES, parts=plan.config.grid.parts)


def pack(plan: LstmPlan, w_ih: Any, w_hh: Any, bias: np.ndarray) -> dict[str, np.ndarray]:
    """The layer's arrays, in the order in which the function takes them. bias (4H,) is b_ih + b_hh."""
    cut = cut_of(plan)
    arrays = {"bias": parts.permuted_vector(bias, cut)}
    for prefix, product, weight in (("ih.", plan.input, w_ih), ("hh.", plan.recurrent, w_hh)):
        arrays |= {prefix + name: array for name, array in parts.pack(product, weight, cut).items()}
    return arrays


def to_dense(plan: LstmPlan, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W_ih, W_hh and the bias that packed arrays stand for."""
    cut = cut_of(plan)
    bias = parts.restored_vector(arrays["bias"], cut)
    w_ih = parts.to_dense(plan.input, select(arrays, "ih."), cut)
    return w_ih, parts.to_dense(plan.recurrent, select(arrays, "hh."), cut), bias


def products(plan: LstmPlan, arrays: dict[str, np.ndarray]) -> tuple[Any, Any, np.ndarray]:
    """The functions z -> W z of packed arrays in NumPy, and the bias."""
    cut = cut_of(plan)
    w_ih = parts.reference(plan.input, select(arrays, "ih."), cut)
    w_hh = parts.reference(plan.recurrent, select(arrays, "hh."), cut)
    return w_ih, w_hh, parts.restored_vector(arrays["bias"], cut)


def prim_func(plan: LstmPlan, arrays: Mapping[str, np.ndarray], name: str = "lstm") -> tvm.tirx.PrimFunc:
    """The function (x, h0, c0, *arrays, y, h, c) of the layer; all of them in the GPU's memory."""
    formats = f"{plan.input.format},{plan.recurrent.format}"
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "doping.kernel": "lstm", "doping.format": formats})
        steps, batch = tirx.Var("steps", "int64"), tirx.Var("batch", "int64")
        states = {"h0": (batch, plan.hidden), "c0": (batch, plan.hidden)}
        inputs = {"x": (steps, batch, plan.inputs), **states}
        io = {key: T.match_buffer(T.arg(key, T.handle()), shape) for key, shape in inputs.items()}
        packed = parameters(arrays)
        outputs = {"y": (steps, batch, plan.hidden), "h": (batch, plan.hidden), "c": (batch, plan.hidden)}
        io |= {key: T.match_buffer(T.arg(key, T.handle()), shape) for key, shape in outputs.items()}
        _Layer(plan, arrays, io, packed, steps, batch).emit()
    return builder.get()


class _Layer:
    def __init__(
        self,
        plan: LstmPlan,
        arrays: Mapping[str, np.ndarray],
        io: dict[str, Buffer],
        packed: dict[str, Buffer],
        steps: Expr,
        batch: Expr,
    ) -> None:
        assert plan.config.grid is not None
        self.plan, self.arrays, self.io, self.packed = plan, arrays, io, packed
        self.steps, self.batch, self.grid, self.cut = steps, batch, plan.config.grid, cut_of(plan)
        # the gates of all units, without what fills their part up to whole warps
        self.projected_rows = self.cut.gates * self.cut.each

    def emit(self) -> None:
        few = self.batch < self.grid.tile_from
        with T.If(few):
            with T.Then(), T.If(self.steps == 1):
                with T.Then():
                    self.step()
                with T.Else():
                    self.sequence()
            with T.Else():
                self.tiles()

    # -- few streams ---------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One step of each stream: blocks of (part, stream)."""
        arena = Arena()
        x, h = arena.take(self.plan.inputs), arena.take(self.plan.hidden)
        ih, hh = self.operand("input"), self.operand("recurrent")
        sources = (lambda n, k: self.io["x"][0, n, k], lambda n, k: self.io["h0"][n, k])
        lows = [(o.low_rank, z) for o, z in zip((ih, hh), sources, strict=True) if o.low_rank is not None]
        of_streams(lows, self.batch)
        for operand in (ih, hh):
            operand.take_stream(arena)
        with launch(self.cut.parts, self.batch, self.grid.threads) as block:
            arena.open()
            for operand, z, source in zip((ih, hh), (x, h), sources, strict=True):
                if operand.reads_z:
                    with block.each(z.count) as i:
                        z.store(i, source(block.y, i))
            for low, _ in lows:
                low.read(block, block.y)
            block.sync()
            for operand, z in ((ih, x), (hh, h)):
                operand.first_product(block, z)
                operand.stream(block, z)
            block.sync()
            base = block.x * self.cut.rows

            def gate(row: Expr) -> Expr:
                return self.packed["bias"][base + row] + ih.total(row) + hh.total(row)

            before = lambda unit: self.io["c0"][block.y, unit]  # noqa: E731
            Cell(self.io, self.cut, block).stream(block.y, 0, before, gate, last=None)

    def sequence(self) -> None:
        """All steps: the inputs' projection, then the recurrence in one launch."""
        pairs = Pairs(per_step=self.steps * self.batch)
        across, counter = self.transposed(pairs)
        projected = self.project(pairs, across)
        arena = Arena()
        h, hh = arena.take(self.plan.hidden), self.operand("recurrent")
        hh.take_stream(arena)
        low = hh.low_rank
        if low is not None:
            low.exchange(arena, self.batch, 1)
        self.stage(hh, arena)
        with launch(self.cut.parts, 1, self.grid.threads) as block:
            arena.open()
            hh.load(block)
            steps, batch = T.bind(int32(self.steps)), T.bind(int32(self.batch))

            with T.serial(0, steps) as step:
                t, before = self.times(step, steps)

                def old(n: Expr, i: Expr, step: Expr = step, before: Expr = before) -> Expr:
                    # y of the step before is h; other blocks have written it
                    return tirx.if_then_else(step == 0, self.io["h0"][n, i], self.io["y"][before, n, i])

                if low is not None:
                    block.sync()  # with the copy of what is staged
                    with T.serial(0, batch) as n:
                        low.inner(block, n, lambda k, lane, n=n, old=old: old(n, k))  # type: ignore[misc]
                        block.sync()
                    self.wait(counter, step, 2, 1)
                with T.serial(0, batch) as n:
                    if hh.reads_z:
                        with block.each(self.plan.hidden) as i:
                            h.store(i, old(n, i))
                    if low is not None:
                        low.read(block, n)
                    block.sync()
                    hh.first_product(block, h)
                    hh.stream(block, h)
                    block.sync()
                    pair = T.bind(self.long(t) * self.batch + n)
                    base = T.bind((pair // WARP * self.cut.parts + block.x) * self.projected_rows)
                    lane = T.bind(int32(pair % WARP))

                    def gate(row: Expr, base: Expr = base, lane: Expr = lane) -> Expr:
                        return projected[(base + row) * WARP + lane] + hh.total(row)

                    cell = Cell(self.io, self.cut, block)
                    old_c = lambda at, n=n, step=step: tirx.if_then_else(  # noqa: E731
                        step == 0, self.io["c0"][n, at], self.io["c"][n, at]
                    )
                    cell.stream(n, t, old_c, gate, last=step == steps - 1)
                with when(step < steps - 1):
                    self.wait(counter, step, 1 if low is None else 2)

    # -- many streams --------------------------------------------------------------------------------------------------------

    def tiles(self) -> None:
        """Tiles of 32 streams: x and h transposed, then the one step or all."""
        tiles = T.bind((self.batch + (WARP - 1)) // WARP)
        across, counter = self.transposed(Pairs(per_step=self.batch, steps=self.steps))
        state = T.alloc_buffer((tiles * (2 * self.plan.hidden * WARP),), "float32")
        transpose(self.io["h0"], state, self.plan.hidden, Pairs(per_step=self.batch))
        with T.If(self.steps == 1):
            with T.Then():
                self.step_of_tiles(tiles, across, state)
            with T.Else():
                self.sequence_of_tiles(tiles, across, state, counter)

    def step_of_tiles(self, tiles: Expr, across: Buffer, state: Buffer) -> None:
        """One step: blocks of (part, tile), for which none waits for another."""
        arena = Arena()
        y = arena.take(self.cut.rows * WARP)
        operands = (self.operand("input"), self.operand("recurrent"))
        for operand, z in zip(operands, (across, state), strict=True):
            operand.take_tile(arena)
            if operand.low_rank is not None:
                of_tiles(operand.low_rank, z, tiles)
        with launch(self.cut.parts, tiles, self.grid.threads) as block:
            arena.open()
            bias = lambda row: self.packed["bias"][block.x * self.cut.rows + row]  # noqa: E731
            before = lambda row: y[row * WARP + block.lane]  # noqa: E731
            for operand, z, start in zip(operands, (across, state), (bias, before), strict=True):
                if operand.low_rank is not None:
                    operand.low_rank.use(block, block.y)
                operand.tile(block, self.columns(z, block.y * (operand.product.columns * WARP)), y, start)
            yes = tirx.const(True, "bool")
            Cell(self.io, self.cut, block).tile(
                block.y, 0, self.batch, y, lambda unit, value: None, first=yes, last=yes
            )

    def sequence_of_tiles(self, tiles: Expr, across: Buffer, state: Buffer, counter: Buffer) -> None:
        """All steps; h lies twice in [tile][unit][stream], read from one and written to the other."""
        hidden = self.plan.hidden
        projected = self.project(Pairs(per_step=self.batch, steps=self.steps), across)
        arena = Arena()
        y, hh = arena.take(self.cut.rows * WARP), self.operand("recurrent")
        hh.take_tile(arena)
        low = hh.low_rank
        if low is not None:
            low.exchange(arena, tiles, WARP)
        self.stage(hh, arena)
        with launch(self.cut.parts, 1, self.grid.threads) as block:
            arena.open()
            hh.load(block)
            steps, count = T.bind(int32(self.steps)), T.bind(int32(tiles))
            with T.serial(0, steps) as step:
                t, _ = self.times(step, steps)
                size = hidden * WARP

                def z(tile: Expr, step: Expr = step) -> Callable[[Expr, Expr], Expr]:
                    # 32 bits: the state of a batch is less than 2^31 values, and a 64-bit address takes two registers
                    return self.columns(state, (step % 2 * count + tile) * size)

                if low is not None:
                    with T.serial(0, count) as tile:
                        block.sync()  # with the sums of the tile before
                        low.inner(block, tile, z(tile))
                    self.wait(counter, step, 2, 1)
                with T.serial(0, count) as tile:
                    target = T.bind(((step + 1) % 2 * count + tile) * size)
                    base = T.bind(
                        ((self.long(t) * tiles + tile) * self.cut.parts + block.x) * self.projected_rows
                    )
                    block.sync()  # with the cell of the tile before
                    rows = self.projected_rows

                    def start(row: Expr, base: Expr = base, rows: int = rows) -> Expr:
                        value = projected[(base + tirx.min(row, rows - 1)) * WARP + block.lane]
                        return value

                    if low is not None:
                        low.use(block, tile)
                    hh.tile(block, z(tile), y, start)

                    def write(unit: Expr, value: Expr, target: Expr = target) -> None:
                        T.buffer_store(state, value, [target + (unit * WARP + block.lane)])

                    first, last = step == 0, step == steps - 1
                    Cell(self.io, self.cut, block).tile(tile, t, self.batch, y, write, first=first, last=last)
                with when(step < steps - 1):
                    self.wait(counter, step, 1 if low is None else 2)

    # -- pieces --------------------------------------------------------------------------------------------------------------

    def transposed(self, pairs: Pairs) -> tuple[Buffer, Buffer]:
        """(x of all pairs [tile][input][pair], the counter of the barrier, at zero)."""
        across = T.alloc_buffer((pairs.tiles * (self.plan.inputs * WARP),), "float32")
        counter = T.alloc_buffer((1,), "int32")
        transpose(self.io["x"], across, self.plan.inputs, pairs, counter)
        return across, counter

    def project(self, pairs: Pairs, across: Buffer) -> Buffer:
        """W_ih x + bias of all pairs [tile][part][row][pair]."""
        tiles = T.bind(pairs.tiles)
        result = T.alloc_buffer((tiles * (self.cut.parts * self.projected_rows * WARP),), "float32")
        operand = self.operand("input")
        project(operand, across, self.packed["bias"], result, self.projected_rows, tiles)
        return result

    def operand(self, name: str) -> Operand:
        prefix = {"input": "ih.", "recurrent": "hh."}[name]
        return Operand(
            getattr(self.plan, name),
            select(self.arrays, prefix),
            select(self.packed, prefix),
            self.cut,
            self.grid.threads,
        )

    @staticmethod
    def columns(z: Buffer, first: Expr) -> Callable[[Expr, Expr], Expr]:
        """What reads [column][stream] of a tile that begins at `first`."""
        base = T.bind(first)
        return lambda column, lane: z[base + (column * WARP + lane)]

    def wait(self, counter: Buffer, step: Expr, each: int, number: int | None = None) -> None:
        """Of `each` barriers of all blocks in a step, the one of that number; the last if none is given."""
        grid_barrier(counter, (step * each + (number or each)) * self.cut.parts)

    def stage(self, operand: Operand, arena: Arena) -> None:
        """Keep the weights in shared memory, if they fit: they are read in every step."""
        if arena.bytes + operand.staging_bytes() <= self.grid.shared:
            operand.stage(arena)

    def times(self, step: Expr, steps: Expr) -> tuple[Expr, Expr]:
        """The time of a step, and of the one before (any time for the first)."""
        if self.plan.reverse:
            return T.bind(steps - 1 - step), T.bind(tirx.min(steps - step, steps - 1))
        return T.bind(step + 0), T.bind(tirx.max(step - 1, 0))

    @staticmethod
    def long(value: Expr) -> Expr:
        """64 bits wide: the projections of a long sequence are more than 2^31 values."""
        return tirx.Cast("int64", value)
