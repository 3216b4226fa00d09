"""How a batch is cut into streams: padded tiles of one stream a lane, and streams one by one; and the copies in and out of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.emit import Buffer, Expr, copy, load, store
from tvm_doping.kernels.plan import Config


@dataclass(frozen=True, kw_only=True)
class Streams:
    """`width` streams of a batch from stream `first` on, laid out buffer[k * width + stream]."""

    first: Expr
    width: int
    batch: Expr
    lanes: int

    def gather(self, source: Buffer, target: Buffer, at: int, count: int, t: Expr | None = None) -> None:
        """target[(at + i) * width + s] = source[(t,) first + s, i]; a padded tile repeats the last stream."""

        def read(n: Expr, i: Expr, w: int) -> Expr:
            index = T.Ramp(i, 1, w) if w > 1 else i
            return source[n, index] if t is None else source[t, n, index]

        if self.width == 1:
            copy(lambda i, w: read(self.first, i, w), lambda i, v, w: store(target, at + i, v, w), count, self.lanes)
            return
        for group in range(0, self.width, self.lanes):
            streams = [T.bind(tirx.min(self.first + (group + s), self.batch - 1)) for s in range(self.lanes)]

            def square(i: Expr, group: int = group, streams: list[Expr] = streams) -> None:
                for k, vector in enumerate(transpose([read(n, i, self.lanes) for n in streams])):
                    store(target, (at + i + k) * self.width + group, vector, self.lanes)

            def single(i: Expr, group: int = group, streams: list[Expr] = streams) -> None:
                for s, n in enumerate(streams):
                    store(target, (at + i) * self.width + group + s, read(n, i, 1), 1)

            self._columns(count, square, single)

    def scatter(self, source: Buffer, at: int, target: Buffer, count: int, t: Expr | None = None) -> None:
        """target[(t,) first + s, i] = source[(at + i) * width + s], for the streams that there are."""

        def write(n: Expr, i: Expr, value: Expr, w: int) -> None:
            index = T.Ramp(i, 1, w) if w > 1 else i
            T.buffer_store(target, value, [n, index] if t is None else [t, n, index])

        if self.width == 1:
            copy(lambda i, w: load(source, at + i, w), lambda i, v, w: write(self.first, i, v, w), count, self.lanes)
            return
        for group in range(0, self.width, self.lanes):
            # Streams beyond the batch write what the last one writes, to the same place.
            streams = [T.bind(tirx.min(self.first + (group + s), self.batch - 1)) for s in range(self.lanes)]

            def square(i: Expr, group: int = group, streams: list[Expr] = streams) -> None:
                rows = [load(source, (at + i + k) * self.width + group, self.lanes) for k in range(self.lanes)]
                for n, vector in zip(streams, transpose(rows), strict=True):
                    write(n, i, vector, self.lanes)

            def single(i: Expr, group: int = group, streams: list[Expr] = streams) -> None:
                for s, n in enumerate(streams):
                    write(n, i, source[(at + i) * self.width + group + s], 1)

            self._columns(count, square, single)

    def _columns(self, count: int, square: Callable[[Expr], None], single: Callable[[Expr], None]) -> None:
        whole = count // self.lanes
        if whole:
            with T.serial(0, whole) as i:
                square(i * self.lanes)
        if count > whole * self.lanes:
            with T.serial(whole * self.lanes, count) as i:
                single(i)


def transpose(rows: list[Expr]) -> list[Expr]:
    """The transpose of a square of vectors, by log2(lanes) stages of two-vector shuffles.

    Left as loops over single values, LLVM makes gathers and scatters of it, with a vector of addresses for each.
    """
    lanes = len(rows)
    if lanes == 1:
        return rows
    vectors = [T.bind(row) for row in rows]
    for _ in range(lanes.bit_length() - 1):
        half = lanes // 2
        low = [index for k in range(half) for index in (k, lanes + k)]
        high = [index + half for index in low]
        pairs = [(vectors[k], vectors[k + half]) for k in range(half)]
        vectors = [T.bind(T.Shuffle([a, b], order)) for a, b in pairs for order in (low, high)]
    return vectors


def for_each(batch: Expr, config: Config, run: Callable[[Streams], None]) -> None:
    """run() full tiles, then a padded tile if the remainder is worth one, then the streams that are left one by one."""

    def streams(first: Expr, width: int) -> Streams:
        return Streams(first=first, width=width, batch=batch, lanes=config.lanes)

    if not config.tile:
        with T.serial(0, batch) as n:
            run(streams(n, 1))
        return
    worth = tirx.Cast("int64", (batch % config.tile) >= config.tile_from)
    tiles = T.bind(batch // config.tile + worth)
    with T.serial(0, tiles) as block:
        run(streams(block * config.tile, config.tile))
    done = T.bind(tirx.min(tiles * config.tile, batch))
    with T.serial(0, batch - done) as n:
        run(streams(done + n, 1))
