"""y += (B (x) C) z of a part's rows: the first product of the rows that the part needs, then a sum for each of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tvm_doping._tvm import T
from tvm_doping.kernels.cuda.parts import Cut
from tvm_doping.kernels.cuda.words import (
    ROWS,
    WARP,
    Arena,
    Block,
    Buffer,
    Expr,
    Piece,
    Sums,
    flat,
    int32,
    unrolled,
)
from tvm_doping.kernels.plan import Part

_CHUNK = 16 * 1024  # bytes of shared memory for the first product, 32 streams at once
_SPLIT = 8  # threads that share a sum of the first product at most


class Kronecker:
    """t = (one factor's rows) z in shared memory, then sum_q t[local, q] second[at, q] (`parts.pack`)."""

    def __init__(
        self,
        part: Part,
        arrays: Mapping[str, np.ndarray],
        buffers: Mapping[str, Buffer],
        cut: Cut,
        threads: int,
        staged: Mapping[str, Piece],
    ) -> None:
        self.part, self.buffers, self.cut, self.threads, self.staged = part, buffers, cut, threads, staged
        _, self.locals, self.k = (int(size) for size in arrays["first"].shape)
        self.q = int(arrays["second"].shape[1])
        self.first: Piece | None = None
        self.firsts: Piece | None = None

    def copied(self) -> dict[str, int]:
        """Arrays that staging copies, and how many values of each a part has."""
        return {"first": self.locals * self.k}

    def base(self, part: Expr) -> Expr:
        """Where the first factor's rows of a part begin."""
        return part * (self.locals * self.k)

    # -- one stream ----------------------------------------------------------------------------------------------------------

    def take_stream(self, arena: Arena) -> None:
        """Take the room of the first product of one stream."""
        self.first = arena.take(self._outputs)
        if self._share > 1:
            self.firsts = arena.take(self._outputs * self._share)

    def first_product(self, block: Block, z: Piece) -> None:
        """The first product, into shared memory; then the block waits."""
        assert self.first is not None
        outputs, share, k_count = self._outputs, self._share, self.k
        with block.each(outputs * share) as job:
            o, s = (T.bind(job % outputs), T.bind(job // outputs)) if share > 1 else (job, 0)
            row, q = T.bind(o // self.q), T.bind(o % self.q)
            total = Sums()
            with T.serial(0, -(-k_count // share)) as step:
                k = T.bind(step * share + s)

                def one(k: Expr = k, row: Expr = row, q: Expr = q, total: Sums = total) -> None:
                    total.add(0, self._factor(block.x, row * k_count + k) * z[self._column(k, q)])

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

    def add(self, block: Block, row: Expr, s: Expr, splits: int, total: Sums) -> None:
        """The sum of a row, the terms s, s + splits and so on."""
        local, at = self._places(block.x, row)
        with T.serial(0, -(-self.q // splits)) as step:
            q = T.bind(step * splits + s)

            def one() -> None:
                assert self.first is not None
                total.add(0, self.first[local * self.q + q] * self.buffers["second"][at, q])

            if self.q % splits:
                with T.If(q < self.q), T.Then():
                    one()
            else:
                one()

    # -- 32 streams ----------------------------------------------------------------------------------------------------------

    def take_tile(self, arena: Arena) -> None:
        """Take the room of some of the first product of 32 streams."""
        self.first = arena.take(self.locals * self._chunk * WARP)

    def tile(self, block: Block, z: Callable[[Expr, Expr], Expr], y: Piece, rows: int) -> None:
        """y[row, lane] += the sums of 32 streams; the block has waited, and waits after."""
        for q0 in range(0, self.q, self._chunk):
            q_count = min(self._chunk, self.q - q0)
            self._tile_first(block, z, q0, q_count)
            block.sync()
            with block.each(rows, warps=True) as row:
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

    def _tile_first(self, block: Block, z: Callable[[Expr, Expr], Expr], q0: int, q_count: int) -> None:
        assert self.first is not None
        with block.each(q_count, warps=True) as q:
            for l0 in range(0, self.locals, ROWS):
                some = min(ROWS, self.locals - l0)
                total = Sums(some)

                def one(k: Expr, q: Expr = q, l0: int = l0, total: Sums = total) -> None:
                    value = T.bind(z(self._column(k, q + q0), block.lane))
                    for j in range(total.count):
                        total.add(j, self._factor(block.x, k + (l0 + j) * self.k) * value)

                unrolled(self.k, one)
                for j in range(some):
                    self.first.store(((l0 + j) * q_count + q) * WARP + block.lane, total[j])

    # -- what is stored ------------------------------------------------------------------------------------------------------

    def _places(self, part: Expr, row: Expr) -> tuple[Expr, Expr]:
        """Where a row's part of the product is: (row of the first product, row of the second factor)."""
        at = T.bind(part * self.cut.rows + row)
        return T.bind(int32(self.buffers["local"][at])), T.bind(int32(self.buffers["at"][at]))

    def _factor(self, part: Expr, i: Expr) -> Expr:
        if "first" in self.staged:
            return self.staged["first"][i]
        return flat(self.buffers["first"])[self.base(part) + i]

    def _column(self, k: Expr, q: Expr) -> Expr:
        """The column of z that step k of output q of the first product reads."""
        n2 = self.part.dims[3]
        return k * n2 + q if self.part.order == "left" else q * n2 + k

    @property
    def _outputs(self) -> int:
        return self.locals * self.q

    @property
    def _share(self) -> int:
        """Threads that share a sum of the first product."""
        return max(1, min(_SPLIT, self.k, self.threads // self._outputs))

    @property
    def _chunk(self) -> int:
        """Outputs q of the first product that a tile computes at a time."""
        return max(1, min(self.q, _CHUNK // (4 * WARP * self.locals)))
