"""Values stored in fp32, fp16, bf16 or int8, read as fp32: arithmetic is fp32 whatever is stored.

fp16 is one instruction on CPUs with F16C (`vcvtph2ps`), bf16 a zero extension and a shift, int8 a sign extension and a
conversion; each takes whole vectors from memory. The scale of an int8 run multiplies the sum of the run once, not its values.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.emit import Buffer, Expr, splat, store


def widen(value: Expr) -> Expr:
    """A stored scalar or vector as fp32: float16, int8 (without its scale), or uint16, which is bf16."""
    dtype = str(value.ty.dtype)
    kind, lanes = re.fullmatch(r"([a-z]+\d+)(x\d+)?", dtype).groups(default="")  # type: ignore[union-attr]
    if kind == "float32":
        return value
    if kind == "uint16":
        bits = tirx.Cast("uint32" + lanes, value)
        shift = tirx.const(16, "uint32")
        return tirx.reinterpret(
            "float32" + lanes, bits << (T.broadcast(shift, int(lanes[1:])) if lanes else shift)
        )
    return tirx.Cast("float32" + lanes, value)


def scaled(total: Expr, scales: Buffer | None, run: Expr, lanes: int) -> Expr:
    """The sum of a run's products with the run's scale; without scales as it is."""
    return total if scales is None else total * splat(scales[run], lanes)


class Rows:
    """Rows of stored values as fp32 scalars, each of which a tile multiplies with a vector of streams.

    Narrow ones are widened some rows at a time into a buffer, in a loop of its own: widened where they are used, LLVM would keep
    them in a vector register and take every scalar out by a shuffle, at half the speed (block16, 8 streams).
    """

    def __init__(self, values: Buffer, count: int, lanes: int, chunk: int = 32) -> None:
        self.values, self.count, self.lanes, self.chunk = values, count, lanes, chunk
        self.narrow = str(values.dtype) != "float32"
        self.buffer: Any = T.alloc_buffer((chunk * count,), "float32") if self.narrow else None

    def each(
        self, first: Expr, rows: Expr, which: range, body: Callable[[Expr, Callable[[int], Expr]], None]
    ) -> None:
        """body(row, weight) for `rows` rows from `first` on; weight(i), i in `which`, is values[row, i]."""
        if not self.narrow:
            with T.serial(0, rows) as k:
                body(first + k, lambda i: self.values[first + k, i])
            return
        for_chunks(rows, self.chunk, lambda start, size: self._chunk(first + start, size, which, body))

    def _chunk(self, first: Expr, size: Expr, which: range, body: Any) -> None:
        first = T.bind(first)
        self.fill(lambda k: (first + k,), size, which)
        with T.serial(0, size) as k:
            body(first + k, lambda i: self.scalar(k, i))

    def fill(self, index: Callable[[Expr], tuple[Expr, ...]], size: Expr, which: range) -> None:
        """Widen values[*index(k), which] for k < size; `scalar(k, i)` then reads them."""
        with T.serial(0, size) as k:
            for i in range(which.start, which.stop, self.lanes):
                width = min(self.lanes, which.stop - i)
                at = T.Ramp(i, 1, width) if width > 1 else i
                store(self.buffer, k * self.count + i, widen(self.values[(*index(k), at)]), width)

    def scalar(self, k: Expr, i: Expr) -> Expr:
        """Value i of row k of those that were widened last."""
        return self.buffer[k * self.count + i]


def for_chunks(count: Expr, chunk: int, body: Callable[[Expr, Expr], None]) -> None:
    """body(start, size) for pieces of at most `chunk` out of `count` (int64)."""
    some = tirx.const(chunk, "int64")
    with T.serial(0, (count + (chunk - 1)) // chunk) as piece:
        start = T.bind(piece * some)
        body(start, T.bind(tirx.min(some, count - start)))
