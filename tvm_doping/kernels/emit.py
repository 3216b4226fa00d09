"""The words that the kernels are written in: vectors, registers and register tiles of TensorIR.

The kernels are built with TVM's IRBuilder rather than parsed from text: a kernel is a Python function that emits its loops
into the function being built, so that a layer is composed of the same pieces whatever its structure and format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.plan import Config

Expr = Any  # a TensorIR expression, or a Python int where an index is meant
Buffer = Any
Write = Callable[[Expr, Expr, int], None]  # (index, vector or value, its width): puts it there

# Vectors or single values in a row that one thread writes: cache lines that two write wander between their cores.
LINES = 16
# The attribute of TVM's code generator that makes one launch of a statement: all threads run it, parallel loops are divided.
REGION = "pragma_parallel_launch_point"
SHARED = "doping.shared"  # the attribute of functions with a region


@dataclass(frozen=True, kw_only=True)
class Product2:
    """The accessors of a small matrix product O (m, nv vectors) = A (m, k) X (k, nv vectors).

    a(i, p) is a scalar, x(p, j) a vector, out(i, j, value) consumes the finished vector; ahead(p) comes before column p.
    """

    m: int
    k: int
    nv: int
    a: Callable[[Expr, Expr], Expr]
    x: Callable[[Expr, Expr], Expr]
    out: Callable[[Expr, Expr, Expr], None]
    ahead: Callable[[Expr], None] = lambda k: None


@contextmanager
def split(extent: int, shared: bool, grain: int = 1, *, wait: bool = True) -> Iterator[Expr]:
    """A loop over independent pieces of work; shared: each thread takes a run of blocks of `grain` pieces, then waits for all.

    wait=False where the next loop is one of the same extent and grain, in which each piece needs only its own: the same thread's.

    Each piece is computed whole by one thread, so that results do not depend on how many there are. Runs of them: a
    thread then works on the same rows in one loop after the other, and their cache lines stay with its core
    (with each block in turn two threads took as long as one).
    """
    if not shared:
        with T.serial(0, extent) as i:
            yield i
        return
    blocks = -(-extent // grain)
    barrier = T.attr(const(0), "pragma_parallel_barrier_when_finish", const(1)) if wait else nullcontext()
    with barrier, T.parallel(0, blocks) as block:
        if grain == 1:
            yield block
        else:
            end = extent if extent % grain == 0 else tirx.min((block + 1) * grain, extent)
            with T.serial(block * grain, (block + 1) * grain if extent % grain == 0 else end) as i:
                yield i


@contextmanager
def region(shared: bool) -> Iterator[None]:
    """What the threads of a session run together: all of it, but for loops of `split`.

    A buffer that is made inside of such a loop is each thread's own; any other is common to them (TVM's StorageRewrite puts
    it before the region, even one that a single loop uses), and each of its places may be written by one thread only.
    """
    if not shared:
        yield
        return
    with T.attr(const(0), REGION, const(1)):
        yield


def load(buffer: Buffer, base: Expr, lanes: int, row: Expr | None = None) -> Expr:
    """The `lanes` consecutive values of `buffer` from `base` on (of its row `row`, if it has two dimensions)."""
    index = T.Ramp(base, 1, lanes) if lanes > 1 else base
    return buffer[index] if row is None else buffer[row, index]


def store(buffer: Buffer, base: Expr, value: Expr, lanes: int) -> None:
    """buffer[base : base + lanes] = value."""
    T.buffer_store(buffer, value, [T.Ramp(base, 1, lanes) if lanes > 1 else base])


def add(buffer: Buffer, base: Expr, value: Expr, lanes: int) -> None:
    """buffer[base : base + lanes] += value."""
    store(buffer, base, load(buffer, base, lanes) + value, lanes)


def splat(value: Expr, lanes: int) -> Expr:
    """A vector whose lanes all hold `value`, a number as fp32."""
    scalar = T.float32(value) if isinstance(value, (int, float)) else value
    return T.broadcast(scalar, lanes) if lanes > 1 else scalar


class Registers:
    """`count` vector accumulators. Each is a buffer of its own with constant indices, which LLVM keeps in a register."""

    def __init__(self, count: int, lanes: int, kind: str = "float32") -> None:
        self.lanes = lanes
        self.buffers = [T.alloc_buffer((lanes,), kind) for _ in range(count)]
        for buffer in self.buffers:
            store(buffer, 0, splat(tirx.const(0, kind), lanes), lanes)

    def __getitem__(self, i: int) -> Expr:
        return load(self.buffers[i], 0, self.lanes)

    def fma(self, i: int, a: Expr, b: Expr) -> None:
        """register[i] += a * b."""
        store(self.buffers[i], 0, self[i] + a * b, self.lanes)

    def total(self, which: range | None = None) -> Expr:
        """The sum of the registers (all, or `which`)."""
        return _sum([self[i] for i in which or range(len(self.buffers))])


def _sum(terms: list[Expr]) -> Expr:
    """Pairwise: the additions do not wait for each other."""
    while len(terms) > 1:
        pairs = range(0, len(terms), 2)
        terms = [terms[i] + terms[i + 1] if i + 1 < len(terms) else terms[i] for i in pairs]
    return terms[0]


def across(vector: Expr, lanes: int) -> Expr:
    """The sum of a vector's lanes, by halves."""
    while lanes > 1:
        lanes //= 2
        whole = T.bind(vector)
        low, high = (T.Shuffle([whole], list(range(first, first + lanes))) for first in (0, lanes))
        vector = low + high
    return vector


def address(value: Expr) -> Expr:
    """A stored index as what buffers are addressed with, 64 bits wide, computed once.

    Neighbours are then constant displacements from it: 32-bit sums LLVM extends one by one, or computes in vector registers and
    takes out lane by lane.
    """
    return T.bind(tirx.Cast("int64", value))


def unpacked(indices: Buffer, at: Expr, count: int, row: Expr | None = None) -> list[Expr]:
    """`count` consecutive 8- or 16-bit indices, loaded as 64-bit words and taken apart by shifts.

    Loaded one by one LLVM puts them into a vector register, from which each has to be extracted again.
    """
    bits = 8 * np.dtype(str(indices.dtype)).itemsize
    some = 64 // bits
    if bits > 16 or count % some:
        return [address(load(indices, at + i, 1, row)) for i in range(count)]
    mask = tirx.const((1 << bits) - 1, "uint64")
    columns: list[Expr] = []
    for first in range(0, count, some):
        word = T.bind(tirx.reinterpret("uint64", load(indices, at + first, some, row)))
        columns += [address((word >> tirx.const(bits * i, "uint64")) & mask) for i in range(some)]
    return columns


def prefetch(buffer: Buffer, *index: Expr) -> None:
    """Ask for a cache line that is read later. It may lie behind the buffer's end: nothing is loaded there, and nothing fails.

    A tile works long on each line, and the hardware's prefetcher stops at the end of a page: it then waits for the next one.
    """
    arguments = (T.address_of(buffer[index]), const(0), const(3), const(1))  # to read, to the L1, data
    T.evaluate(tirx.call_intrin("void", "tirx.prefetch", *arguments))


def copy(
    source: Callable[[Expr, int], Expr],
    target: Write,
    count: int,
    lanes: int,
    shared: bool = False,
) -> None:
    """target(i, source(i, w), w) for all i < count: whole vectors, then the rest one by one (nothing beyond is touched)."""
    whole = count // lanes
    if whole:
        with split(whole, shared, LINES) as i:
            target(i * lanes, source(i * lanes, lanes), lanes)
    if count > whole * lanes:
        with split(count - whole * lanes, shared, LINES) as rest:
            j = whole * lanes + rest
            target(j, source(j, 1), 1)


def matmul(product: Product2, config: Config, shared: bool = False) -> None:
    """Emit the product in register tiles of R rows by V vectors; out() is called row by row, left to right."""
    lanes = config.lanes
    rows, width = _register_tile(product.m, product.nv, config.registers)

    def tile(i0: Expr, r: int, j0: Expr, v: int) -> None:
        acc = Registers(r * v, lanes)
        with T.serial(0, product.k) as p:
            product.ahead(p)
            columns = (
                [T.bind(product.x(p, j0 + j)) for j in range(v)]
                if r > 1
                else [product.x(p, j0 + j) for j in range(v)]
            )
            for i in range(r):
                scalar = splat(product.a(i0 + i, p), lanes)
                for j in range(v):
                    acc.fma(i * v + j, scalar, columns[j])
        for i in range(r):
            for j in range(v):
                product.out(i0 + i, j0 + j, acc[i * v + j])

    def across(i0: Expr, r: int) -> None:
        blocks(product.nv, width, lambda j0, v: tile(i0, r, j0, v))

    blocks(product.m, rows, across, shared)


def row_times(u: Callable[[Expr], Expr], v: Buffer, config: Config, write: Write) -> None:
    """Write u V for a row u (k) and a buffer V (k, n), in whole vectors and the columns that are left one by one."""
    k, n = (int(size) for size in v.shape)
    whole = n // config.lanes

    def columns_from(first: int, width: int, count: int) -> None:
        if count:
            vector = Product2(
                m=1,
                k=k,
                nv=count,
                a=lambda _, p: u(p),
                x=lambda p, j: load(v, first + j * width, width, p),
                out=lambda _, j, value: write(first + j * width, value, width),
            )
            matmul(vector, replace(config, lanes=width))

    columns_from(0, config.lanes, whole)
    columns_from(whole * config.lanes, 1, n - whole * config.lanes)


def blocks(extent: int, size: int, body: Callable[[Expr, int], None], shared: bool = False) -> None:
    """body(first, count) for blocks of `size` out of `extent`, and for what is left."""
    whole = extent // size
    if whole == 1 and not shared:
        body(0, size)
    elif whole:
        with split(whole, shared) as block:
            body(block * size, size)
    if extent % size and shared:
        with split(1, shared):
            body(whole * size, extent % size)
    elif extent % size:
        body(whole * size, extent % size)


def _register_tile(m: int, nv: int, registers: int) -> tuple[int, int]:
    """The tile (rows, vectors) of least estimated cycles: two FMAs, two loads a cycle, four of FMA latency, one a column."""

    def cost(r: int, v: int) -> float:
        total = 0.0
        for rows in _sizes(m, r):
            for vectors in _sizes(nv, v):
                loads = vectors + rows if vectors > 1 else 1 + rows
                total += max(rows * vectors / 2, loads / 2, 4.0) + 1.0
        return total

    candidates = [
        (r, v)
        for v in range(1, min(nv, 12) + 1)
        for r in range(1, min(m, 24) + 1)
        if r * v + v + 1 <= registers - 1
    ]
    return min(candidates, key=lambda c: (round(cost(*c), 3), c[0] * c[1]))


def _sizes(extent: int, size: int) -> Sequence[int]:
    whole = [size] * (extent // size)
    return [*whole, extent % size] if extent % size else whole


def const(value: int) -> Expr:
    """An int32 constant."""
    return tirx.const(value, "int32")
