"""y += W z of a part's rows, for one stream or for 32 streams side by side.

One stream: z lies in shared memory, a lane takes a row of a group; the slots of a group are divided among the warps, whose sums are
added at the end (`Operand.stream`). 32 streams: a lane takes a stream, a warp some rows; z [column][stream] is read through the L1
(`Operand.tile`). Structures of two products, and tensor cores, have rooms of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.cuda.kronecker import Kronecker
from tvm_doping.kernels.cuda.low_rank import LowRank
from tvm_doping.kernels.cuda.parts import LOW_RANK, TENSOR, Cut
from tvm_doping.kernels.cuda.tensor import Tiles
from tvm_doping.kernels.cuda.words import ROWS, WARP, Arena, Block, Buffer, Expr, Piece, Sums, flat, int32
from tvm_doping.kernels.plan import Product
from tvm_doping.kernels.values import widen


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The slots of a group: `count` of them, of which number k holds weight(k, lane) for the column column(k, lane)."""

    count: Expr
    weight: Callable[[Expr, Expr], Expr]
    column: Callable[[Expr, Expr], Expr]


class Operand:
    """A packed product and its places in shared memory.

    staged: S (or the dense panels), U, a part of V and the first factor are copied to shared memory by `load`, to be read there in
    every step.
    """

    def __init__(
        self,
        product: Product,
        arrays: Mapping[str, np.ndarray],
        buffers: Mapping[str, Buffer],
        cut: Cut,
        block_threads: int,
    ) -> None:
        self.product, self.arrays, self.buffers, self.cut = product, arrays, buffers, cut
        self.threads, self.warps = block_threads, block_threads // WARP
        self.staged: dict[str, Piece] = {}
        self.sums: Piece | None = None
        kind, given = product.part.kind, (arrays, buffers, cut, block_threads, self.staged)
        self.kronecker = Kronecker(product.part, *given) if kind == "kronecker" else None
        self.low_rank = LowRank(product.part, *given) if kind in LOW_RANK else None
        self.tensor = Tiles(product, *given) if product.sparse == TENSOR else None

    # -- places --------------------------------------------------------------------------------------------------------------

    @property
    def splits(self) -> int:
        """Warps that share the slots of a group."""
        return max(1, self.warps // self.cut.groups)

    @property
    def reads_z(self) -> bool:
        """Whether a part's rows are multiplied with z itself, not only with the inner product of a low rank."""
        return self.low_rank is None or self.product.sparse is not None

    @property
    def most(self) -> int:
        """Slots of the largest part."""
        if self.product.part.kind == "dense":
            return self.cut.groups * self.product.columns
        if self.product.sparse is None:
            return 0
        starts = self.arrays["S.group_ptr"][:: self.cut.groups]
        return int(np.diff(starts).max())

    def stage(self, arena: Arena) -> None:
        """Take the room of what `load` copies."""
        for name, count in self._copied().items():
            self.staged[name] = arena.take(count, str(self.arrays[name].dtype))

    def staging_bytes(self) -> int:
        """How much room that is."""
        arena = Arena()
        for name, count in self._copied().items():
            arena.take(count, str(self.arrays[name].dtype))
        return arena.bytes

    def take_stream(self, arena: Arena) -> None:
        """Take the room that `stream` works in."""
        self.sums = arena.take(self.splits * self.cut.rows)
        for structure in (self.kronecker, self.low_rank):
            if structure is not None:
                structure.take_stream(arena)

    def take_tile(self, arena: Arena) -> None:
        """Take the room that `tile` works in."""
        if self.kronecker is not None:
            self.kronecker.take_tile(arena)

    # -- one stream ----------------------------------------------------------------------------------------------------------

    def load(self, block: Block) -> None:
        """Copy what is staged; a barrier follows before it is read."""
        for name, piece in self.staged.items():
            source, count, base = flat(self.buffers[name]), piece.count, self._base(name, block.x)
            total = int(source.shape[0])
            with block.each(count) as i:
                at = T.bind(base + i)
                # the last parts may have fewer slots than the largest: what lies behind them is never read
                piece.store(i, source[tirx.min(at, total - 1)])

    def first_product(self, block: Block, z: Piece) -> None:
        """The first product of a Kronecker product, into shared memory; then the block waits."""
        if self.kronecker is not None:
            self.kronecker.first_product(block, z)

    def stream(self, block: Block, z: Piece) -> None:
        """The sums of all rows, by warps: `total` adds them up once the block has waited."""
        assert self.sums is not None
        groups, splits = self.cut.groups, self.splits
        with block.each(groups * splits, warps=True) as job:
            g, s = (T.bind(job % groups), T.bind(job // groups)) if splits > 1 else (job, 0)
            slots = self._slots(block.x, g)
            total = Sums()
            if slots is not None:
                with T.serial(0, (slots.count - s + (splits - 1)) // splits) as step:
                    k = T.bind(step * splits + s)
                    total.add(0, slots.weight(k, block.lane) * z[slots.column(k, block.lane)])
                self._scale(total, block.x, g)
            row = T.bind(self._row(block.x, g, block.lane))
            if self.kronecker is not None:
                self.kronecker.add(block, row, s, splits, total)
            if self.low_rank is not None:
                self.low_rank.add(block.x, g, [block.lane], total, s, splits)
            self.sums.store(s * self.cut.rows + row, total[0])
        if self.tensor is not None:
            block.sync()
            self.tensor.stream(block, z, self.sums, splits)

    def total(self, row: Expr) -> Expr:
        """(W z)[row] of the part, once `stream` is done and the block has waited."""
        assert self.sums is not None
        terms = [self.sums[s * self.cut.rows + row] for s in range(self.splits)]
        return sum(terms[1:], terms[0])

    # -- 32 streams ----------------------------------------------------------------------------------------------------------

    def tile(
        self, block: Block, z: Callable[[Expr, Expr], Expr], y: Piece, start: Callable[[Expr], Expr]
    ) -> None:
        """y[row, lane] = start(row) + (W z)[row] of 32 streams, z(column, stream of them); the block waits before and after."""
        groups, share, rows = self._tile_shape()
        with block.each(groups * share, warps=True) as job:
            g, first = T.bind(job // share), T.bind(job % share * rows)
            for begin in range(0, rows, ROWS):
                some = min(ROWS, rows - begin)
                lanes = [T.bind(first + (begin + j)) for j in range(some)]
                self._tile_rows(block, z, y, start, g, lanes)
        if self.tensor is not None:
            block.sync()
            self.tensor.tile(block, z, y)
            block.sync()
        if self.kronecker is not None:
            self.kronecker.tile(block, z, y, groups * share * rows)
        elif self.tensor is None:
            block.sync()

    def _tile_rows(
        self,
        block: Block,
        z: Callable[[Expr, Expr], Expr],
        y: Piece,
        start: Callable[[Expr], Expr],
        g: Expr,
        lanes: list[Expr],
    ) -> None:
        total = Sums(len(lanes))
        slots = self._slots(block.x, g)
        if slots is not None:
            with T.serial(0, slots.count) as k:
                if self.product.part.kind == "dense":  # a column for all rows
                    shared = T.bind(z(slots.column(k, 0), block.lane))
                    for j, lane in enumerate(lanes):
                        total.add(j, slots.weight(k, lane) * shared)
                else:
                    for j, lane in enumerate(lanes):
                        total.add(j, slots.weight(k, lane) * z(slots.column(k, lane), block.lane))
            self._scale(total, block.x, g)
        if self.low_rank is not None:
            self.low_rank.add(block.x, g, lanes, total)
        for j, lane in enumerate(lanes):
            row = T.bind(self._row(block.x, g, lane))
            y.store(row * WARP + block.lane, start(row) + total[j])

    def _tile_shape(self) -> tuple[int, int, int]:
        """(groups, warps that share a group, rows of each): a power of two of them."""
        groups, share = self.cut.groups, 1
        while share * 2 * groups <= self.warps and share < WARP:
            share *= 2
        return groups, share, WARP // share

    # -- what is stored ------------------------------------------------------------------------------------------------------

    def _copied(self) -> dict[str, int]:
        """Arrays that staging copies, and how many values of each a part has."""
        found: dict[str, int] = {}
        if self.product.part.kind == "dense":
            found["W"] = self.most * WARP
        elif self.tensor is not None:
            found |= self.tensor.copied()
        elif self.product.sparse is not None:
            found |= {"S.values": self.most * WARP, "S.indices": self.most * WARP}
        for structure in (self.kronecker, self.low_rank):
            found |= {} if structure is None else structure.copied()
        return found

    def _base(self, name: str, part: Expr) -> Expr:
        if name in ("V", "U"):
            assert self.low_rank is not None
            return self.low_rank.base(name, part)
        if name == "first":
            assert self.kronecker is not None
            return self.kronecker.base(part)
        if name == "W":
            return part * (self.most * WARP)
        if self.tensor is not None:
            return self.tensor.base(name, part)
        return T.bind(self.buffers["S.group_ptr"][part * self.cut.groups] * WARP)

    def _slots(self, part: Expr, g: Expr) -> Slots | None:
        """Those of group g of a part."""
        if self.product.part.kind == "dense":
            n, panels = self.product.columns, self.buffers["W"]
            if "W" in self.staged:
                weight = lambda k, lane: widen(self.staged["W"][(g * n + k) * WARP + lane])  # noqa: E731
            else:
                weight = lambda k, lane: widen(panels[part * self.cut.groups + g, k, lane])  # noqa: E731
            return Slots(count=int32(tirx.const(n, "int32")), weight=weight, column=lambda k, lane: k)
        if self.product.sparse is None or self.tensor is not None:
            return None
        pointers = self.buffers["S.group_ptr"]
        at = part * self.cut.groups + g
        first, count = T.bind(pointers[at]), T.bind(pointers[at + 1] - pointers[at])
        if "S.values" in self.staged:
            here = T.bind(first - pointers[part * self.cut.groups])
            values, indices = self.staged["S.values"], self.staged["S.indices"]
            return Slots(
                count=count,
                weight=lambda k, lane: widen(values[(here + k) * WARP + lane]),
                column=lambda k, lane: int32(indices[(here + k) * WARP + lane]),
            )
        stored, columns = self.buffers["S.values"], self.buffers["S.indices"]
        return Slots(
            count=count,
            weight=lambda k, lane: widen(stored[first + k, lane]),
            column=lambda k, lane: int32(columns[first + k, lane]),
        )

    def _scale(self, total: Sums, part: Expr, g: Expr) -> None:
        """The scale of an int8 group, once for its sums."""
        name = "W.scales" if self.product.part.kind == "dense" else "S.scales"
        if name in self.buffers:
            scale = T.bind(self.buffers[name][part * self.cut.groups + g])
            for i in range(total.count):
                total.set(i, total[i] * scale)

    def _row(self, part: Expr, g: Expr, lane: Expr) -> Expr:
        """The row, in the part, of a lane of a group."""
        if self.product.sparse is None or self.tensor is not None:
            return g * WARP + lane
        rows = self.buffers["S.rows"]
        return rows[(part * self.cut.groups + g) * WARP + lane] - part * self.cut.rows
