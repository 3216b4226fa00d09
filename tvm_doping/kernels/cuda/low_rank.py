"""U (V z), and the hybrid [D; U V] = [I 0; 0 U] ([D; V] z), which is the same with more rows within.

The inner product t = [D; V] z is needed whole by every block, a product of r (or k + r) rows with all of z. Blocks divide its rows
and exchange t through global memory: by a launch of its own, or in a sequence by one more barrier a step. Each block computing all
of t instead would spare the barrier (1-2 us) and read all of V: 360 KB for H = 1500 and r = 60, which the shared memory of no
block holds beside S, and which 132 blocks together read from the L2 in 9 us.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

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

Read = Callable[[Expr], Expr]


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
        self.partial: Piece | None = None
        self.room: Piece | None = None
        self.t: Read = lambda q: 0

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

    def take_partial(self, arena: Arena, width: int) -> None:
        """Take the room of the inner product of so many streams side by side."""
        self.partial = arena.take(self.splits * self.each * width)

    def inner_stream(self, block: Block, z: Read, write: Callable[[Expr, Expr], None]) -> None:
        """write(row, (V z)[row]) of the block's rows for one stream; lanes take columns. The block must wait before the next."""
        steps = -(-self.columns // (self.splits * WARP))

        def sums(i: Expr, s: Expr, total: Sums) -> Expr:
            def one(step: Expr) -> None:
                k = T.bind((step * self.splits + s) * WARP + block.lane)
                if self.columns % (self.splits * WARP):
                    with when(k < self.columns):
                        total.add(0, self._v(block.x, i, k) * z(k))
                else:
                    total.add(0, self._v(block.x, i, k) * z(k))

            unrolled(steps, one)
            return warp_sum(total[0])

        self._inner(block, 1, sums, write)

    def inner_tile(self, block: Block, z: Callable[[Expr, Expr], Expr], write: Any) -> None:
        """The same of 32 streams, a lane each; z(column, lane)."""
        steps = -(-self.columns // self.splits)

        def sums(i: Expr, s: Expr, total: Sums) -> Expr:
            def one(step: Expr) -> None:
                k = T.bind(step * self.splits + s)
                if self.columns % self.splits:
                    with when(k < self.columns):
                        total.add(0, self._v(block.x, i, k) * z(k, block.lane))
                else:
                    total.add(0, self._v(block.x, i, k) * z(k, block.lane))

            unrolled(steps, one)
            return total[0]

        self._inner(block, WARP, sums, write)

    def _inner(self, block: Block, width: int, sums: Any, write: Callable[[Expr, Expr], None]) -> None:
        each, splits, partial = self.each, self.splits, self.partial
        assert partial is not None
        with block.each(each * splits, warps=True) as job:
            i, s = (T.bind(job % each), T.bind(job // each)) if splits > 1 else (job, 0)
            with when(block.x * each + i < self.count):
                value = T.bind(sums(i, s, Sums()))
                if width == 1:
                    with when(block.lane == 0):
                        partial.store(job, value)
                else:
                    partial.store(job * WARP + block.lane, value)
        block.sync()
        with block.each(each, warps=width > 1) as i:
            row = T.bind(block.x * each + i)
            with when(row < self.count):
                lane = block.lane if width > 1 else 0
                terms = [partial[(i + s * each) * width + lane] for s in range(splits)]
                value = sum(terms[1:], terms[0])
                if "V.scales" in self.buffers:
                    value = value * self.buffers["V.scales"][row]
                write(row, value)

    def _v(self, part: Expr, i: Expr, k: Expr) -> Expr:
        if "V" in self.staged:
            return widen(self.staged["V"][i * self.columns + k])
        return widen(self.buffers["V"][part * self.each + i, k])

    # -- y += U t ------------------------------------------------------------------------------------------------------------

    def take_stream(self, arena: Arena) -> None:
        """Take the room of t of one stream; `read` fills it."""
        self.room = arena.take(self.count)

    def read(self, block: Block, source: Read) -> None:
        """Copy t into shared memory; a barrier follows before it is read."""
        room = self.room
        assert room is not None
        with block.each(self.count) as q:
            room.store(q, source(q))
        self.t = lambda q: room[q]

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


def of_streams(pairs: list[tuple[LowRank, Callable[[Expr, Expr], Expr]]], rows: Expr) -> list[Buffer]:
    """The inner products [row of z][row of V] of some weights, in one launch; each with its z(row, column)."""
    if not pairs:
        return []
    targets = [T.alloc_buffer((rows * low.count,), "float32") for low, _ in pairs]
    arena, first = Arena(), 0
    for low, _ in pairs:
        low.take_partial(arena, 1)
    with launch(sum(low.blocks for low, _ in pairs), rows, pairs[0][0].threads) as block:
        arena.open()
        for (low, z), target in zip(pairs, targets, strict=True):

            def write(row: Expr, value: Expr, low: LowRank = low, target: Buffer = target) -> None:
                T.buffer_store(target, value, [block.y * low.count + row])

            # blocks of one weight, then those of the next
            mine = tirx.all(block.x >= first, block.x < first + low.blocks)
            with when(mine):
                own = replace(block, x=T.bind(block.x - first))
                low.inner_stream(own, lambda k, z=z: z(block.y, k), write)  # type: ignore[misc]
            first += low.blocks
    return targets


def of_tiles(low: LowRank, z: Buffer, tiles: Expr) -> Buffer:
    """The inner products [tile][row of V][lane] of the tiles of `transpose`."""
    target = T.alloc_buffer((tiles * (low.count * WARP),), "float32")
    arena = Arena()
    low.take_partial(arena, WARP)
    with launch(low.blocks, tiles, low.threads) as block:
        arena.open()
        tile = T.bind(tirx.Cast("int64", block.y))
        base, to = T.bind(tile * (low.columns * WARP)), T.bind(tile * (low.count * WARP))

        def write(row: Expr, value: Expr) -> None:
            T.buffer_store(target, value, [to + (row * WARP + block.lane)])

        low.inner_tile(block, lambda k, lane: z[base + (k * WARP + lane)], write)
    return target
