"""U (V z), and the hybrid [D; U V] = [I 0; 0 U] ([D; V] z), which is the same with more rows within.

The inner product t = [D; V] z is needed whole by every block, a product of r (or k + r) rows with all of z. Blocks divide its rows
and exchange t through global memory: by a launch of its own, or in a sequence by one more barrier a step. Each block computing all
of t instead would spare the barrier (1-2 us) and read all of V: 360 KB for H = 1500 and r = 60, which the shared memory of no
block holds beside S, and which 132 blocks together read from the L2 in 9 us.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.cuda.parts import Cut
from tvm_doping.kernels.cuda.words import (
    WARP,
    Arena,
    Block,
    Buffer,
    Expr,
    Piece,
    Sums,
    launch,
    unrolled,
    warp_sum,
    when,
)
from tvm_doping.kernels.plan import Part
from tvm_doping.kernels.values import widen


class LowRank:
    """Both products of a part; t(q) reads the inner one, once it is there."""

    def __init__(
        self,
        part: Part,
        arrays: Mapping[str, np.ndarray],
        buffers: Mapping[str, Buffer],
        cut: Cut,
        threads: int,
        staged: Mapping[str, Piece],
    ) -> None:
        self.buffers, self.cut, self.staged = buffers, cut, staged
        self.threads, self.warps = threads, threads // WARP
        self.rank = part.dims[-1]
        self.count, self.columns = (int(size) for size in arrays["V"].shape)
        self.each = -(-self.count // cut.parts)
        self.width = 1  # streams side by side, 1 or 32
        self.exchanged: Buffer = None
        self.partial: Piece | None = None
        self.room: Piece | None = None
        self.t: Callable[[Expr], Expr] = lambda q: 0

    @property
    def blocks(self) -> int:
        """Blocks that the inner product takes."""
        return -(-self.count // self.each)

    @property
    def splits(self) -> int:
        """Warps that share a row of the inner product."""
        return max(1, self.warps // self.each)

    def copied(self) -> dict[str, int]:
        """Arrays that staging copies, and how many values of each a part has."""
        return {"V": self.each * self.columns, "U": self.cut.groups * self.rank * WARP}

    def base(self, name: str, part: Expr) -> Expr:
        """Where those of a part begin."""
        return part * self.copied()[name]

    # -- t = V z -------------------------------------------------------------------------------------------------------------

    def exchange(self, arena: Arena, count: Expr, width: int) -> None:
        """Take the room of the inner product, and the memory that blocks exchange it through: `count` streams, or tiles of 32."""
        self.width, self.partial = width, arena.take(self.splits * self.each * width)
        self.exchanged = T.alloc_buffer((count * (self.count * width),), "float32")

    def inner(self, block: Block, at: Expr, z: Callable[[Expr, Expr], Expr]) -> None:
        """V z of the block's rows for stream `at`, or for tile `at` of 32 streams, a lane each; z(column, stream of the tile).

        Lanes take columns of one stream. The block must wait before the next.
        """
        each, splits, terms_of, wide = self.each, self.splits, self.partial, self.width > 1
        assert terms_of is not None
        stride = splits if wide else splits * WARP
        with block.each(each * splits, warps=True) as job:
            i, s = (T.bind(job % each), T.bind(job // each)) if splits > 1 else (job, 0)
            with when(block.x * each + i < self.count):
                total = Sums()

                def one(step: Expr) -> None:
                    k = step * splits + s
                    k = T.bind(k if wide else k * WARP + block.lane)
                    with when(k < self.columns) if self.columns % stride else nullcontext():
                        total.add(0, self._v(block.x, i, k) * z(k, block.lane))

                unrolled(-(-self.columns // stride), one)
                if wide:
                    terms_of.store(job * WARP + block.lane, total[0])
                else:
                    value = T.bind(warp_sum(total[0]))
                    with when(block.lane == 0):
                        terms_of.store(job, value)
        block.sync()
        with block.each(each, warps=wide) as i:
            row, lane = T.bind(block.x * each + i), block.lane if wide else 0
            with when(row < self.count):
                terms = [terms_of[(i + s * each) * self.width + lane] for s in range(splits)]
                value = sum(terms[1:], terms[0])
                if "V.scales" in self.buffers:
                    value = value * self.buffers["V.scales"][row]
                T.buffer_store(self.exchanged, value, [(at * self.count + row) * self.width + lane])

    def _v(self, part: Expr, i: Expr, k: Expr) -> Expr:
        if "V" in self.staged:
            return widen(self.staged["V"][i * self.columns + k])
        return widen(self.buffers["V"][part * self.each + i, k])

    # -- y += U t ------------------------------------------------------------------------------------------------------------

    def take_stream(self, arena: Arena) -> None:
        """Take the room of t of one stream; `read` fills it."""
        self.room = arena.take(self.count)

    def read(self, block: Block, n: Expr) -> None:
        """Copy t of stream n into shared memory; a barrier follows before it is used."""
        room = self.room
        assert room is not None
        with block.each(self.count) as q:
            room.store(q, self.exchanged[n * self.count + q])
        self.t = lambda q: room[q]

    def use(self, block: Block, tile: Expr) -> None:
        """Let `add` read t of a tile, each lane that of its stream."""
        first = T.bind(tile * (self.count * WARP))
        self.t = lambda q: self.exchanged[first + (q * WARP + block.lane)]

    def add(self, part: Expr, g: Expr, lanes: list[Expr], total: Sums, s: Expr = 0, splits: int = 1) -> None:
        """Of the lanes of a group, a sum each: the terms s, s + splits and so on."""
        outer = Sums(len(lanes))
        inside = self.count - self.rank  # D's rows come before V's

        def one(step: Expr) -> None:
            q = T.bind(step * splits + s)

            def add() -> None:
                t = T.bind(self.t(q + inside))
                for j, lane in enumerate(lanes):
                    outer.add(j, self._u(part, g, q, lane) * t)

            if self.rank % splits:
                with when(q < self.rank):
                    add()
            else:
                add()

        unrolled(-(-self.rank // splits), one)
        scales = self.buffers.get("U.scales")
        scale = None if scales is None else T.bind(scales[part * self.cut.groups + g])
        for j, lane in enumerate(lanes):
            total.add(j, outer[j] if scale is None else outer[j] * scale)
            if "pick" in self.buffers:
                row = T.bind(self.buffers["pick"][(part * self.cut.groups + g) * WARP + lane])
                with when(tirx.all(row >= 0, s == 0) if splits > 1 else row >= 0):
                    total.add(j, self.t(row))

    def _u(self, part: Expr, g: Expr, q: Expr, lane: Expr) -> Expr:
        if "U" in self.staged:
            return widen(self.staged["U"][(g * self.rank + q) * WARP + lane])
        return widen(self.buffers["U"][part * self.cut.groups + g, q, lane])


def of_streams(pairs: list[tuple[LowRank, Callable[[Expr, Expr], Expr]]], rows: Expr) -> None:
    """The inner products of some weights for one stream after the other, in one launch; each with its z(stream, column)."""
    if not pairs:
        return
    arena, first = Arena(), 0
    for low, _ in pairs:
        low.exchange(arena, rows, 1)
    with launch(sum(low.blocks for low, _ in pairs), rows, pairs[0][0].threads) as block:
        arena.open()
        for low, z in pairs:  # blocks of one weight, then those of the next
            with when(tirx.all(block.x >= first, block.x < first + low.blocks)):
                own = replace(block, x=T.bind(block.x - first))
                low.inner(own, block.y, partial(_of_row, z, block.y))
            first += low.blocks


def of_tiles(low: LowRank, z: Buffer, tiles: Expr) -> None:
    """The inner products of the tiles of `transpose`."""
    arena = Arena()
    low.exchange(arena, tiles, WARP)
    with launch(low.blocks, tiles, low.threads) as block:
        arena.open()
        tile = T.bind(tirx.Cast("int64", block.y))
        base = T.bind(tile * (low.columns * WARP))
        low.inner(block, tile, lambda k, lane: z[base + (k * WARP + lane)])


def _of_row(z: Callable[[Expr, Expr], Expr], row: Expr, k: Expr, lane: Expr) -> Expr:
    return z(row, k)
