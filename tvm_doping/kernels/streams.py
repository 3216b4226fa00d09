"""How a batch is cut into streams: padded tiles of one stream a lane, and streams one by one; and the copies in and out of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.emit import LINES, Buffer, Expr, copy, load, split, store

Read = Callable[
    [Expr, Expr, int], Expr
]  # (stream, column, width) -> the stream's `width` values from the column on
Write = Callable[[Expr, Expr, Expr, int], None]  # (stream, column, value, width)


@dataclass(frozen=True, kw_only=True)
class Streams:
    """`width` streams from stream `first` on, of `count` in all, laid out buffer[k * width + stream].

    shared: whether threads share the copies (emit.split)."""

    first: Expr
    width: int
    count: Expr
    lanes: int
    shared: bool = False

    def gather(self, read: Read, target: Buffer, columns: int) -> None:
        """target[i * width + s] = read(first + s, i); a padded tile repeats the last stream."""
        if self.width == 1:
            copy(
                lambda i, w: read(self.first, i, w),
                lambda i, v, w: store(target, i, v, w),
                columns,
                self.lanes,
                self.shared,
            )
            return
        for group in range(0, self.width, self.lanes):
            streams = self._members(group)

            def square(i: Expr, group: int = group, streams: list[Expr] = streams) -> None:
                for k, vector in enumerate(transpose([read(n, i, self.lanes) for n in streams])):
                    store(target, (i + k) * self.width + group, vector, self.lanes)

            def single(i: Expr, group: int = group, streams: list[Expr] = streams) -> None:
                for s, n in enumerate(streams):
                    store(target, i * self.width + group + s, read(n, i, 1), 1)

            self._columns(columns, square, single)

    def scatter(self, source: Buffer, write: Write, columns: int) -> None:
        """write(first + s, i, source[i * width + s]); streams beyond the count write what the last one does, to its place."""
        if self.width == 1:
            copy(
                lambda i, w: load(source, i, w),
                lambda i, v, w: write(self.first, i, v, w),
                columns,
                self.lanes,
                self.shared,
            )
            return
        for group in range(0, self.width, self.lanes):
            streams = self._members(group)

            def square(i: Expr, group: int = group, streams: list[Expr] = streams) -> None:
                rows = [load(source, (i + k) * self.width + group, self.lanes) for k in range(self.lanes)]
                for n, vector in zip(streams, transpose(rows), strict=True):
                    write(n, i, vector, self.lanes)

            def single(i: Expr, group: int = group, streams: list[Expr] = streams) -> None:
                for s, n in enumerate(streams):
                    write(n, i, source[i * self.width + group + s], 1)

            self._columns(columns, square, single)

    def _members(self, group: int) -> list[Expr]:
        return [T.bind(tirx.min(self.first + (group + s), self.count - 1)) for s in range(self.lanes)]

    def _columns(self, count: int, square: Callable[[Expr], None], single: Callable[[Expr], None]) -> None:
        whole = count // self.lanes
        if whole:
            with split(whole, self.shared, LINES) as i:
                square(i * self.lanes)
        if count > whole * self.lanes:
            with split(count - whole * self.lanes, self.shared, LINES) as i:
                single(whole * self.lanes + i)


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


def for_each(
    count: Expr,
    lanes: int,
    tile: int,
    tile_from: int,
    run: Callable[[Streams], None],
    shared: bool = False,
) -> None:
    """run() full tiles, then a padded tile if the remainder is worth one, then the streams that are left one by one."""

    def streams(first: Expr, width: int) -> Streams:
        return Streams(first=first, width=width, count=count, lanes=lanes, shared=shared)

    if not tile:
        with T.serial(0, count) as n:
            run(streams(n, 1))
        return
    worth = tirx.Cast("int64", (count % tile) >= tile_from)
    tiles = T.bind(count // tile + worth)
    with T.serial(0, tiles) as block:
        run(streams(block * tile, tile))
    done = T.bind(tirx.min(tiles * tile, count))
    with T.serial(0, count - done) as n:
        run(streams(done + n, 1))


def row(buffer: Buffer, *lead: Expr) -> tuple[Read, Write]:
    """The accessors of buffer[*lead, stream, column]."""

    def index(n: Expr, i: Expr, w: int) -> list[Expr]:
        return [*lead, n, T.Ramp(i, 1, w) if w > 1 else i]

    return lambda n, i, w: buffer[tuple(index(n, i, w))], lambda n, i, v, w: T.buffer_store(
        buffer, v, index(n, i, w)
    )
