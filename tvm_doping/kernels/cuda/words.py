"""The words that CUDA kernels are written in: launches, shared memory, loops of a block's threads and warps, barriers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.backend.cuda.op import cuda_func_call

from tvm_doping._tvm import T, tirx

Expr = Any
Buffer = Any

WARP = 32
ROWS = 4  # sums of a thread in a tile: with 8, and its loops unrolled, it needs more than 128 registers

# A barrier of all blocks of a grid, which must all be resident: the launch is a cooperative one (lowering.py). The counter only
# grows, so that no block has to reset it: barrier number k lets blocks through once it has reached k times their number. The fences
# order what was written before the barrier ahead of what is read behind it; the one behind also drops stale lines of the L1.
# `__ldcv` reads the counter anew each time.
BARRIER = "doping_grid_barrier"
_BARRIER_SOURCE = """
__device__ __forceinline__ void doping_grid_barrier(int* counter, int target) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(counter, 1);
    while (__ldcv(counter) < target) {}
    __threadfence();
  }
  __syncthreads();
}
"""

# fminf and fmaxf give the other operand for a NaN; comparisons are false for one. A function of C, as TVM's passes take half a
# minute to look at nested selections.
_CLAMP_SOURCE = """
__device__ __forceinline__ float doping_clamp(float x, float limit) {
  return x < -limit ? -limit : (x > limit ? limit : x);
}
"""

_WARP_SUM_SOURCE = """
__device__ __forceinline__ float doping_warp_sum(float x) {
  for (int by = 16; by > 0; by /= 2) x += __shfl_xor_sync(0xffffffffu, x, by);
  return x;
}
"""


@dataclass(frozen=True, kw_only=True)
class Block:
    """The indices of a launched block: x and y in the grid, tx among its threads, its warp and lane."""

    x: Expr
    y: Expr
    tx: Expr
    warp: Expr
    lane: Expr
    threads: int

    @property
    def warps(self) -> int:
        return self.threads // WARP

    @contextmanager
    def each(self, count: int, *, warps: bool = False) -> Iterator[Expr]:
        """A loop over `count` pieces of work, each of which one thread does, or one warp."""
        mine, width = (self.warp, self.warps) if warps else (self.tx, self.threads)
        rounds = -(-count // width)
        with ExitStack() as stack:
            at = mine
            if rounds > 1:
                at = T.bind(stack.enter_context(T.serial(0, rounds)) * width + mine)
            if count % width:
                stack.enter_context(T.If(at < count))
                stack.enter_context(T.Then())
            yield at

    def sync(self) -> None:
        """All threads of the block wait for each other, and see what each has written to shared memory."""
        T.evaluate(T.tvm_storage_sync("shared"))


@contextmanager
def launch(x: Expr, y: Expr, threads: int) -> Iterator[Block]:
    """One kernel: a grid of x by y blocks."""

    def size(extent: Expr) -> Expr:
        return tirx.const(extent, "int32") if isinstance(extent, int) else tirx.Cast("int32", extent)

    with (
        T.launch_thread("blockIdx.x", size(x)) as bx,
        T.launch_thread("blockIdx.y", size(y)) as by,
        T.launch_thread("threadIdx.x", size(threads)) as tx,
    ):
        yield Block(x=bx, y=by, tx=tx, warp=tx // WARP, lane=tx % WARP, threads=threads)


class Arena:
    """The shared memory of a block: pieces of any type side by side in one allocation, each at a place of its own.

    One allocation, as TVM would let buffers share a place whose lives do not overlap, without a barrier between the last reader of
    one and the first writer of the next. All pieces are taken before `open`.
    """

    ALIGNMENT = 16  # of the widest load

    def __init__(self) -> None:
        self.bytes = 0
        self._views: dict[str, Buffer] = {}

    def take(self, count: int, dtype: str = "float32") -> Piece:
        """Room for `count` values."""
        size = np.dtype(dtype).itemsize
        piece = Piece(self, self.bytes // size, count, dtype)
        self.bytes += -(-count * size // self.ALIGNMENT) * self.ALIGNMENT
        return piece

    def open(self) -> None:
        """Allocate; inside of a launch."""
        base = T.alloc_buffer((max(1, self.bytes // 4),), "float32", scope="shared.dyn")
        self._views["float32"] = base

    def view(self, dtype: str) -> Buffer:
        """The whole allocation as values of a type."""
        if dtype not in self._views:
            count = max(1, self.bytes // np.dtype(dtype).itemsize)
            data = self._views["float32"].data
            self._views[dtype] = T.decl_buffer((count,), dtype, data=data, scope="shared.dyn")
        return self._views[dtype]


@dataclass(frozen=True)
class Piece:
    """Values of one type in an arena."""

    arena: Arena
    start: int
    count: int
    dtype: str

    def __getitem__(self, i: Expr) -> Expr:
        return self.arena.view(self.dtype)[i + self.start]

    @property
    def view(self) -> Buffer:
        """The allocation that holds them, from `start` on."""
        return self.arena.view(self.dtype)

    def store(self, i: Expr, value: Expr) -> None:
        """piece[i] = value."""
        T.buffer_store(self.arena.view(self.dtype), value, [i + self.start])


class Sums:
    """`count` fp32 sums of one thread, in registers: a local buffer with constant indices."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.buffer = T.alloc_buffer((count,), "float32", scope="local")
        for i in range(count):
            self.set(i, T.float32(0))

    def __getitem__(self, i: int) -> Expr:
        return self.buffer[i]

    def set(self, i: int, value: Expr) -> None:
        T.buffer_store(self.buffer, value, [i])

    def add(self, i: int, value: Expr) -> None:
        self.set(i, self.buffer[i] + value)


def grid_barrier(counter: Buffer, target: Expr) -> None:
    """Wait until the counter has reached `target`: all blocks have come here."""
    T.evaluate(cuda_func_call(BARRIER, T.address_of(counter[0]), target, source_code=_BARRIER_SOURCE))


def unrolled(count: int, body: Callable[[Expr], None], by: int = 4) -> None:
    """body(i) for i < count, `by` at a time: nvcc would unroll a loop of constant length whole, and keep a load of each round."""
    if count >= by:
        with T.serial(0, count // by, annotations={"disable_unroll": True}) as block:
            for i in range(by):
                body(T.bind(block * by + i))
    for i in range(count - count % by, count):
        body(tirx.const(i, "int32"))


def clamp(x: Expr, limit: float) -> Expr:
    """x within [-limit, limit]; a NaN stays one."""
    source = _CLAMP_SOURCE
    return cuda_func_call("doping_clamp", x, T.float32(limit), source_code=source, return_type="float32")


def warp_sum(x: Expr) -> Expr:
    """The sum of x over the lanes of a warp, all of which must come here."""
    return cuda_func_call("doping_warp_sum", x, source_code=_WARP_SUM_SOURCE, return_type="float32")


def flat(buffer: Buffer) -> Buffer:
    """The buffer with one dimension."""
    shape = [int(size) for size in buffer.shape]
    if len(shape) == 1:
        return buffer
    return T.decl_buffer((int(np.prod(shape)),), str(buffer.dtype), data=buffer.data)


def int32(value: Expr) -> Expr:
    """As a 32-bit index: 64-bit arithmetic takes a GPU several instructions."""
    return tirx.Cast("int32", value)


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """Only where the condition holds."""
    with T.If(condition), T.Then():
        yield
