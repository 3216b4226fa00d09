"""y += W z of a part's rows, for one stream or for 32 streams side by side.

One stream: z lies in shared memory, a lane takes a row of a group; the slots of a group are divided among the warps, whose sums are
added at the end (`Operand.stream`). 32 streams: a lane takes a stream, a warp some rows; z [column][stream] is read through the L1
(`Operand.tile`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.cuda.parts import Cut
from tvm_doping.kernels.cuda.words import WARP, Arena, Block, Buffer, Expr, Piece, Sums, int32, unrolled
from tvm_doping.kernels.plan import Product
from tvm_doping.kernels.values import widen

_ROWS = 4  # sums of a thread in a tile: with 8, and its loops unrolled, it needs more than 128 registers
_CHUNK = 16 * 1024  # bytes of shared memory for the first product of a Kronecker product, 32 streams at once
_SPLIT = 8  # threads that share a sum of the first product at most

Read = Callable[[Expr], Expr]


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The slots of a group: `count` of them, of which number k holds weight(k, lane) for the column column(k, lane)."""

    count: Expr
    weight: Callable[[Expr, Expr], Expr]
    column: Callable[[Expr, Expr], Expr]


class Operand:
    """A packed product and its places in shared memory.

    staged: S (or the dense panels) and the first factor are copied to shared memory by `load`, to be read there step after step.
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
        self.first: Piece | None = None
        self.firsts: Piece | None = None

    # -- places --------------------------------------------------------------------------------------------------------------

    @property
    def kronecker(self) -> bool:
        return self.product.part.kind == "kronecker"

    @property
    def splits(self) -> int:
        """Warps that share the slots of a group."""
        return max(1, self.warps // self.cut.groups)

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
        if self.kronecker:
            self.first = arena.take(self._outputs)
            if self._share > 1:
                self.firsts = arena.take(self._outputs * self._share)

    def take_tile(self, arena: Arena) -> None:
        """Take the room that `tile` works in."""
        if self.kronecker:
            self.first = arena.take(self._locals * self._chunk * WARP)

    # -- one stream ----------------------------------------------------------------------------------------------------------

    def load(self, block: Block) -> None:
        """Copy what is staged; a barrier follows before it is read."""
        for name, piece in self.staged.items():
            source, count, base = self.buffers[name], piece.count, self._base(name, block.x)
            flat = _flat(source)
            total = flat.shape[0]
            with block.each(count) as i:
                at = T.bind(base + i)
                # the last parts may have fewer slots than the largest: what lies behind them is never read
                piece.store(i, flat[tirx.min(at, int(total) - 1)])

    def first_product(self, block: Block, z: Piece) -> None:
        """The first product of a Kronecker product, into shared memory; then the block waits."""
        if not self.kronecker:
            return
        assert self.first is not None
        outputs, share, k_count = self._outputs, self._share, self._k
        with block.each(outputs * share) as job:
            o, s = (T.bind(job % outputs), T.bind(job // outputs)) if share > 1 else (job, 0)
            row, q = T.bind(o // self._q), T.bind(o % self._q)
            total = Sums()
            with T.serial(0, -(-k_count // share)) as step:
                k = T.bind(step * share + s)

                def one(k: Expr = k, row: Expr = row, q: Expr = q, total: Sums = total) -> None:
                    total.add(0, self._first_factor(block.x, row * k_count + k) * z[self._column(k, q)])

                if k_count % share:
                    with T.If(k < k_count), T.Then():
                        one()
                else:
                    one()
            (self.firsts if share > 1 else self.first).store(job, total[0])  # type: ignore[union-attr]
        block.sync()
        if share > 1:
            assert self.firsts is not None
            with block.each(outputs) as o:
                terms = [self.firsts[o + s * outputs] for s in range(share)]
                self.first.store(o, sum(terms[1:], terms[0]))
            block.sync()

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
            if self.kronecker:
                local, at = self._places(block.x, row)
                with T.serial(0, -(-self._q // splits)) as step:
                    q = T.bind(step * splits + s)

                    def one(q: Expr = q, local: Expr = local, at: Expr = at, total: Sums = total) -> None:
                        assert self.first is not None
                        total.add(0, self.first[local * self._q + q] * self.buffers["second"][at, q])

                    if self._q % splits:
                        with T.If(q < self._q), T.Then():
                            one()
                    else:
                        one()
            self.sums.store(s * self.cut.rows + row, total[0])

    def total(self, row: Expr) -> Expr:
        """(W z)[row] of the part, once `stream` is done and the block has waited."""
        assert self.sums is not None
        terms = [self.sums[s * self.cut.rows + row] for s in range(self.splits)]
        return sum(terms[1:], terms[0])

    # -- 32 streams ----------------------------------------------------------------------------------------------------------

    def tile(self, block: Block, z: Read, y: Piece, start: Callable[[Expr], Expr] | None) -> None:
        """y[row, lane] = start(row) + (W z)[row] of 32 streams (start None: y + ...); the block waits before and after."""
        groups, share, rows = self._tile_shape()
        with block.each(groups * share, warps=True) as job:
            g, first = T.bind(job // share), T.bind(job % share * rows)
            for begin in range(0, rows, _ROWS):
                some = min(_ROWS, rows - begin)
                lanes = [T.bind(first + (begin + j)) for j in range(some)]
                self._tile_rows(block, z, y, start, g, lanes)
        if not self.kronecker:
            block.sync()
            return
        for q0 in range(0, self._q, self._chunk):
            q_count = min(self._chunk, self._q - q0)
            self._tile_first(block, z, q0, q_count)
            block.sync()
            with block.each(groups * share * rows, warps=True) as row:
                local, at = self._places(block.x, row)
                total = Sums()

                def one(
                    q: Expr,
                    q0: int = q0,
                    q_count: int = q_count,
                    local: Expr = local,
                    at: Expr = at,
                    total: Sums = total,
                ) -> None:
                    assert self.first is not None
                    t = self.first[(local * q_count + q) * WARP + block.lane]
                    total.add(0, t * self.buffers["second"][at, q + q0])

                unrolled(q_count, one)
                y.store(row * WARP + block.lane, y[row * WARP + block.lane] + total[0])
            block.sync()

    def _tile_rows(
        self,
        block: Block,
        z: Read,
        y: Piece,
        start: Callable[[Expr], Expr] | None,
        g: Expr,
        lanes: list[Expr],
    ) -> None:
        total = Sums(len(lanes))
        slots = self._slots(block.x, g)
        if slots is not None:
            with T.serial(0, slots.count) as k:
                if self.product.part.kind == "dense":  # a column for all rows
                    shared = T.bind(z(slots.column(k, 0)))
                    for j, lane in enumerate(lanes):
                        total.add(j, slots.weight(k, lane) * shared)
                else:
                    for j, lane in enumerate(lanes):
                        total.add(j, slots.weight(k, lane) * z(slots.column(k, lane)))
            self._scale(total, block.x, g)
        for j, lane in enumerate(lanes):
            row = T.bind(self._row(block.x, g, lane))
            at = T.bind(row * WARP + block.lane)
            before = y[at] if start is None else start(row)
            y.store(at, before + total[j])

    def _tile_first(self, block: Block, z: Read, q0: int, q_count: int) -> None:
        assert self.first is not None
        with block.each(q_count, warps=True) as q:
            for l0 in range(0, self._locals, _ROWS):
                some = min(_ROWS, self._locals - l0)
                total = Sums(some)

                def one(k: Expr, q: Expr = q, l0: int = l0, total: Sums = total) -> None:
                    value = T.bind(z(self._column(k, q + q0)))
                    for j in range(total.count):
                        total.add(j, self._first_factor(block.x, k + (l0 + j) * self._k) * value)

                unrolled(self._k, one)
                for j in range(some):
                    self.first.store(((l0 + j) * q_count + q) * WARP + block.lane, total[j])

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
        if self.product.sparse is not None:
            found |= {"S.values": self.most * WARP, "S.indices": self.most * WARP}
        if self.kronecker:
            found["first"] = self._locals * self._k
        return found

    def _base(self, name: str, part: Expr) -> Expr:
        if name == "first":
            return part * (self._locals * self._k)
        if name == "W":
            return part * (self.most * WARP)
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
        if self.product.sparse is None:
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
        if self.product.sparse is None:
            return g * WARP + lane
        rows = self.buffers["S.rows"]
        return rows[(part * self.cut.groups + g) * WARP + lane] - part * self.cut.rows

    def _places(self, part: Expr, row: Expr) -> tuple[Expr, Expr]:
        """Where a row's part of the Kronecker product is: (row of the first product, row of the second factor)."""
        at = T.bind(part * self.cut.rows + row)
        return T.bind(int32(self.buffers["local"][at])), T.bind(int32(self.buffers["at"][at]))

    def _first_factor(self, part: Expr, i: Expr) -> Expr:
        if "first" in self.staged:
            return self.staged["first"][i]
        return _flat(self.buffers["first"])[part * (self._locals * self._k) + i]

    def _column(self, k: Expr, q: Expr) -> Expr:
        """The column of z that step k of output q of the first product reads."""
        n2 = self.product.part.dims[3]
        return k * n2 + q if self.product.part.order == "left" else q * n2 + k

    @property
    def _locals(self) -> int:
        return int(self.arrays["first"].shape[1])

    @property
    def _k(self) -> int:
        return int(self.arrays["first"].shape[2])

    @property
    def _q(self) -> int:
        return int(self.arrays["second"].shape[1])

    @property
    def _outputs(self) -> int:
        return self._locals * self._q

    @property
    def _share(self) -> int:
        """Threads that share a sum of the first product."""
        return max(1, min(_SPLIT, self._k, self.threads // self._outputs))

    @property
    def _chunk(self) -> int:
        """Outputs q of the first product that a tile computes at a time."""
        return max(1, min(self._q, _CHUNK // (4 * WARP * self._locals)))


def _flat(buffer: Buffer) -> Buffer:
    """The buffer with one dimension."""
    shape = [int(size) for size in buffer.shape]
    if len(shape) == 1:
        return buffer
    return T.decl_buffer((int(np.prod(shape)),), str(buffer.dtype), data=buffer.data)
