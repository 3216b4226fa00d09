"""z in a narrow type, and sums of its products with narrow weights: what a dot-product instruction takes and gives.

The weights of a register are `rows` rows by `each` columns (sparsity.dots), and z is laid out alike: for one stream the columns
follow each other, so that a register holds some groups of `each`; for a tile, streams take the place of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels import neon
from tvm_doping.kernels.emit import LINES, Buffer, Expr, Registers, load, splat, split, store
from tvm_doping.kernels.scope import Scope
from tvm_doping.sparsity.dots import DOTS, SMALLEST, Dot

# Of a register of 16 bytes: how z is held, and its elements.
_HELD = {"bf16": ("int16", 8), "fp16": ("float16", 8), "int8": ("int8", 16)}
_LANES = 4


@contextmanager
def scope(scope: Scope) -> Iterator[None]:
    """In which the dot products of a scope's instruction may be emitted."""
    needs = DOTS[scope.dot].values == "bf16"
    with neon.bf16(portable=scope.config.portable) if needs else nullcontext():
        yield


class Narrow:
    """z (columns), rounded to what the scope's instruction takes: once, for all rows that it is multiplied with.

    Of int8 each stream has a scale: the largest magnitude of its z over 127. apart: a tile's columns one by one, for formats that
    take any of them together.
    """

    def __init__(self, scope: Scope, columns: int, *, apart: bool = False) -> None:
        self.scope, self.columns, self.dot = scope, columns, DOTS[scope.dot]
        if apart and scope.width > 1:
            self.dot = replace(self.dot, each=1, matrix=False)
        self.kind, self.size = _HELD[self.dot.values]
        self.groups = -(-columns // self.dot.unit) * self.dot.unit // self.dot.each
        self.streams = min(scope.width, self.dot.rows)  # of a register
        self.vectors = scope.width // self.streams
        self.scales: Any = None
        if self.dot.values == "int8":
            self._measure()
        if scope.width == 1:
            self._stream()
        else:
            self._tile()

    def stream(self, register: Expr) -> Expr:
        """For one stream: a register's groups of columns."""
        return load(self.buffer, register * self.size, self.size)

    def tile(self, group: Expr, vector: Expr) -> Expr:
        """For a tile: a group of columns of one register of streams. (With four streams of fp16 a column beyond fills it.)

        For an instruction of matrices, groups 2 k and 2 k + 1 are two groups of the first, and of the last, two streams.
        """
        stride = self.streams * self.dot.each
        return load(self.buffer, (group * self.vectors + vector) * stride, self.size)

    def gathered(self, columns: list[Expr], vector: Expr = 0) -> Expr:
        """A group of any columns, apart: of one stream in all lanes, of a tile of a register of streams."""
        if self.scope.width == 1:
            parts = [T.broadcast(self.buffer[column], self.size) for column in columns]
        elif len(columns) == 1:
            return self.tile(columns[0], vector)
        else:
            parts = [load(self.buffer, (c * self.vectors + vector) * self.streams, _LANES) for c in columns]
        if len(parts) == 1:
            return parts[0]
        first = self.size if self.scope.width == 1 else _LANES  # of the second one's lanes
        return T.Shuffle(parts, [i + k * first for i in range(self.size // 2) for k in range(2)])

    def scale(self, vector: Expr = 0) -> Expr | None:
        """What the sums of a vector of streams are to be multiplied with; of a stream alone, in all lanes."""
        if self.scales is None:
            return None
        if self.scope.width == 1:
            return splat(self.scales[0], _LANES)
        return load(self.scales, vector * _LANES, _LANES)

    def _stream(self) -> None:
        scope, whole = self.scope, self.columns // _LANES
        count = -(-self.groups * self.dot.each // self.size) * self.size
        self.buffer: Buffer = T.alloc_buffer((count,), self.kind)
        with split(whole, scope.shared, LINES) as i:
            store(self.buffer, i * _LANES, self._rounded(load(scope.z, i * _LANES, _LANES)), _LANES)
        if count == whole * _LANES:
            return
        with split(1, scope.shared):
            store(self.buffer, whole * _LANES, self._rounded(load(scope.z, whole * _LANES, _LANES)), _LANES)
            for i in range(self.columns, count):  # what lies behind z may be no number
                T.buffer_store(self.buffer, tirx.const(0, self.kind), [i])

    def _tile(self) -> None:
        scope, unit = self.scope, self.dot.unit
        # a register of four streams of fp16 reads beyond the last column
        count = self.groups * self.dot.each * scope.width + self.size
        self.buffer = T.alloc_buffer((count,), self.kind)
        whole = self.columns // unit
        if whole:
            with split(whole, scope.shared, LINES) as at:
                self._columns(at, unit)
        if self.columns % unit:
            with split(1, scope.shared):
                self._columns(whole, self.columns % unit)

    def _columns(self, at: Expr, present: int) -> None:
        """Round columns unit * at and so on, of which so many exist, for all streams."""
        each, vectors = self.dot.each, self.scope.vectors
        for v in range(vectors):
            columns = [
                self.scope.input(at * self.dot.unit + i, v) if i < present else splat(0.0, _LANES)
                for i in range(self.dot.unit)
            ]
            groups = [self._side_by_side(columns[i : i + each], v) for i in range(0, len(columns), each)]
            if self.dot.matrix:
                groups = zipped(*groups)
            for g, group in enumerate(groups):
                place = (at * len(groups) + g) * vectors + v
                store(self.buffer, place * (_LANES * each), group, _LANES * each)

    def _side_by_side(self, columns: list[Expr], v: int) -> Expr:
        """Columns of four streams as a register holds them: those of a stream next to each other."""
        if self.dot.values == "int8":
            words = [self._integers(column, v) & _i32(255) for column in columns]
            word = words[0]
            for i, other in enumerate(words[1:], 1):
                word = word | (other << _i32(8 * i))
            return tirx.reinterpret("int8x16", word)
        rounded = [T.bind(self._rounded(column, v)) for column in columns]
        return rounded[0] if len(rounded) == 1 else T.Shuffle(rounded, [0, 4, 1, 5, 2, 6, 3, 7])

    def _rounded(self, vector: Expr, v: Expr = 0) -> Expr:
        """Four floats as they are held; v: the vector of streams that they belong to."""
        if self.dot.values == "bf16":
            return neon.round_bf16(vector, portable=self.scope.config.portable)
        if self.dot.values == "fp16":
            return tirx.Cast("float16x4", vector)
        return tirx.Cast("int8x4", self._integers(vector, v))

    def _integers(self, vector: Expr, v: Expr) -> Expr:
        """vector / scale to nearest: the sum with 1.5 * 2^23 has no fraction. Defined for any number, as a conversion is not."""
        width = self.scope.width
        inverse = (
            splat(self.scales[1], _LANES) if width == 1 else load(self.scales, width + v * _LANES, _LANES)
        )
        bits = tirx.reinterpret("int32x4", vector * inverse + splat(_MAGIC, _LANES))
        return T.bind(bits - _i32(_MAGIC_BITS))

    def _measure(self) -> None:
        """The scale of each stream, then the inverse of each. Bits of magnitudes order as numbers do, and a NaN is the largest."""
        scope, width = self.scope, self.scope.width
        self.scales = T.alloc_buffer((2 * width,), "float32")
        with split(1, scope.shared):
            for v in range(max(1, scope.vectors)):
                peak = T.alloc_buffer((_LANES,), "int32")
                store(peak, 0, _i32(0), _LANES)

                def widest(column: Expr, peak: Buffer = peak, v: int = v) -> None:
                    bits = tirx.reinterpret("int32x4", scope.input(column, v)) & _i32(0x7FFFFFFF)
                    store(peak, 0, tirx.max(load(peak, 0, _LANES), bits), _LANES)

                if width > 1:
                    with T.serial(0, self.columns) as k:
                        widest(k)
                    self._scale(tirx.reinterpret("float32x4", load(peak, 0, _LANES)), v * _LANES, _LANES)
                    continue
                if self.columns >= _LANES:
                    with T.serial(0, self.columns // _LANES) as k:
                        widest(k * _LANES)
                largest = [peak[lane] for lane in range(_LANES)]
                for i in range(self.columns // _LANES * _LANES, self.columns):
                    largest.append(tirx.reinterpret("int32", scope.z[i]) & tirx.const(0x7FFFFFFF, "int32"))
                together = largest[0]
                for one in largest[1:]:
                    together = tirx.max(together, one)
                self._scale(tirx.reinterpret("float32", together), 0, 1)

    def _scale(self, peak: Expr, at: int, lanes: int) -> None:
        peak, one = T.bind(peak), splat(1.0, lanes)
        none = peak <= splat(SMALLEST, lanes)
        inverse = T.bind(tirx.Select(none, one, splat(127.0, lanes) / peak))
        # of infinity the inverse is 0, and their product no number
        scale = tirx.Select(peak <= splat(_LARGEST, lanes), peak / splat(127.0, lanes), peak * inverse)
        store(self.scales, at, tirx.Select(none, one, scale), lanes)
        store(self.scales, self.scope.width + at, inverse, lanes)


class Sums:
    """`count` registers of sums, `parts` vectors of four each: rows of a register of weights, or streams of one of z."""

    def __init__(self, scope: Scope, count: int, parts: int) -> None:
        self.dot: Dot = DOTS[scope.dot]
        self.name, self.parts, self.portable = scope.dot, parts, scope.config.portable
        self.registers = Registers(count * parts, _LANES, "int32" if self.dot.values == "int8" else "float32")
        self.short = Registers(count, self.dot.rows, "float16") if self.dot.terms else None

    def add(self, i: int, a: Expr, b: Expr, element: int | None = None) -> None:
        """sums[i] += a times b, or times the group of columns `element` of b in all lanes."""
        each, size = self.dot.each, _HELD[self.dot.values][1]
        if element is None:
            pass
        elif self.name == "bfdot":  # as a float, of which LLVM makes an operand of the instruction
            b = tirx.reinterpret("int16x8", T.Shuffle([tirx.reinterpret("float32x4", b)], [element] * 4))
        else:
            b = T.Shuffle([b], [element * each + k for k in range(each)] * (size // each))
        if self.short is not None:
            new = neon.fmla(self.short[i], a, b, portable=self.portable)
            store(self.short.buffers[i], 0, new, self.dot.rows)
            return
        for part in range(self.parts):
            at = i * self.parts + part
            store(self.registers.buffers[at], 0, self._dot(self.registers[at], a, b, part), _LANES)

    def _dot(self, sums: Expr, a: Expr, b: Expr, part: int) -> Expr:
        if self.name == "fmlal":
            return neon.fmlal(sums, a, b, high=bool(part), portable=self.portable)
        emit = neon.bfdot if self.name == "bfdot" else neon.sdot
        return emit(sums, a, b, portable=self.portable)

    def multiply(self, i: int, a: Expr, b: Expr) -> None:
        """sums[i] += a b^T, 2 x 2, for an instruction of matrices."""
        emit = neon.bfmmla if self.dot.values == "bf16" else neon.smmla
        new = emit(self.registers[i], a, b, portable=self.portable)
        store(self.registers.buffers[i], 0, new, _LANES)

    def flush(self) -> None:
        """The end of `Dot.terms` products: fp32 takes their sums over."""
        if self.short is None:
            return
        for i, buffer in enumerate(self.short.buffers):
            for part in range(self.parts):
                at = i * self.parts + part
                wide = neon.halves(self.short[i], high=bool(part))
                store(self.registers.buffers[at], 0, self.registers[at] + wide, _LANES)
            store(buffer, 0, splat(tirx.const(0, "float16"), self.dot.rows), self.dot.rows)

    def total(self, which: range) -> list[Expr]:
        """The sum of some registers, by parts, as floats."""
        totals = [
            self.registers.total(range(which.start * self.parts + p, which.stop * self.parts, self.parts))
            for p in range(self.parts)
        ]
        return [tirx.Cast("float32x4", total) for total in totals] if self.dot.values == "int8" else totals


def held(vector: Expr) -> Expr:
    """Stored weights as the instruction takes them: bfloat16 is stored in unsigned words."""
    return tirx.reinterpret("int16x8", vector) if str(vector.ty.dtype) == "uint16x8" else vector


def zipped(first: Expr, second: Expr) -> list[Expr]:
    """Two groups of columns of four rows, or streams: both groups of the first two, and of the last two, for `multiply`."""
    words = [T.bind(tirx.reinterpret("int32x4", group)) for group in (first, second)]
    kind = str(first.ty.dtype)
    return [tirx.reinterpret(kind, T.Shuffle(words, order)) for order in ([0, 4, 1, 5], [2, 6, 3, 7])]


def _i32(value: int) -> Expr:
    return T.broadcast(tirx.const(value, "int32"), _LANES)


# 1.5 * 2^23, its bits, and the largest float
_MAGIC, _MAGIC_BITS, _LARGEST = 12582912.0, 0x4B400000, 3.4028234663852886e38
