"""y += S z on tensor cores, for S in the format mma16 with values in fp16 or bf16.

A warp takes a tile of 16 rows x 16 columns (`sparsity.formats.mma`) as the matrix A, gathers the 16 rows of z that its columns
name, 8 streams of them, as B, and adds A B to 16 x 8 sums in fp32: `mma.sync.m16n8k16` (PTX ISA, "Matrix fragments for
mma.m16n8k16").
z is rounded to the type of the values. One stream is multiplied as eight equal ones, so that S z does not depend on how many run.

fp32 values have no such product: TF32 keeps 10 bits of them, and `precision="exact"` allows no rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from tvm.backend.cuda.op import cuda_func_call

from tvm_doping._tvm import T
from tvm_doping.kernels.cuda.parts import Cut
from tvm_doping.kernels.cuda.words import WARP, Block, Buffer, Expr, Piece, Sums, flat, int32
from tvm_doping.kernels.plan import Product

BAND = 16  # rows of a tile, and its columns
_STREAMS = 8  # of a product

_SOURCE = """
__device__ __forceinline__ void doping_mma_%(name)s(float* y, const void* a, float z0, float z1, float z2, float z3) {
  unsigned int low, high;
  asm("cvt.rn.%(type)sx2.f32 %%0, %%1, %%2;" : "=r"(low) : "f"(z1), "f"(z0));
  asm("cvt.rn.%(type)sx2.f32 %%0, %%1, %%2;" : "=r"(high) : "f"(z3), "f"(z2));
  const uint4 tile = *(const uint4*)a;
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.%(type)s.%(type)s.f32 "
               "{%%0, %%1, %%2, %%3}, {%%4, %%5, %%6, %%7}, {%%8, %%9}, {%%0, %%1, %%2, %%3};"
               : "+f"(y[0]), "+f"(y[1]), "+f"(y[2]), "+f"(y[3])
               : "r"(tile.x), "r"(tile.y), "r"(tile.z), "r"(tile.w), "r"(low), "r"(high));
}
"""
_TYPES = {"fp16": "f16", "bf16": "bf16"}


class Tiles:
    """S of a part as tiles of tensor cores."""

    def __init__(
        self,
        product: Product,
        arrays: Mapping[str, np.ndarray],
        buffers: Mapping[str, Buffer],
        cut: Cut,
        threads: int,
        staged: Mapping[str, Piece],
    ) -> None:
        self.name = product.values
        self.source = _SOURCE % {"name": self.name, "type": _TYPES[self.name]}
        self.buffers, self.cut, self.staged = buffers, cut, staged
        self.warps, self.bands = threads // WARP, cut.rows // BAND
        self.most = int(np.diff(arrays["S.tile_ptr"][:: self.bands]).max())

    def copied(self) -> dict[str, int]:
        """Arrays that staging copies, and how many values of each a part has at most."""
        return {"S.values": self.most * BAND * BAND, "S.columns": self.most * BAND}

    def base(self, name: str, part: Expr) -> Expr:
        """Where those of a part begin."""
        each = BAND * BAND if name == "S.values" else BAND
        return T.bind(self.buffers["S.tile_ptr"][part * self.bands] * each)

    def stream(self, block: Block, z: Piece, sums: Piece, splits: int) -> None:
        """sums[split, row] += S z of one stream; the block has waited, and must wait after."""
        shared = max(1, min(splits, self.warps // self.bands))
        with block.each(self.bands * shared, warps=True) as job:
            band, s = (T.bind(job % self.bands), T.bind(job // self.bands)) if shared > 1 else (job, 0)
            total = self._sums(block, band, s, shared, lambda column: z[column])
            with T.If(block.lane % 4 == 0), T.Then():  # which hold the first of the eight equal streams
                for half in range(2):
                    row = T.bind(s * self.cut.rows + band * BAND + (half * 8 + block.lane // 4))
                    sums.store(row, sums[row] + total[2 * half])

    def tile(self, block: Block, z: Callable[[Expr, Expr], Expr], y: Piece) -> None:
        """y[row, lane] += S z of 32 streams; the block has waited, and must wait after."""
        quarters = WARP // _STREAMS
        with block.each(self.bands * quarters, warps=True) as job:
            band, first = T.bind(job // quarters), T.bind(job % quarters * _STREAMS)
            stream = T.bind(first + block.lane // 4)
            total = self._sums(block, band, 0, 1, lambda column: z(column, stream))
            for i in range(4):
                row = band * BAND + (i // 2 * 8 + block.lane // 4)
                at = T.bind(row * WARP + (first + (block.lane % 4 * 2 + i % 2)))
                y.store(at, y[at] + total[i])

    def _sums(self, block: Block, band: Expr, first: Expr, step: int, z: Callable[[Expr], Expr]) -> Sums:
        """A lane's four sums of the band: rows g and g + 8 of streams 2 t and 2 t + 1, lane = 4 g + t; every step-th tile."""
        pointers, whole = self.buffers["S.tile_ptr"], block.x * self.bands
        start = T.bind(pointers[whole + band])
        count = T.bind(pointers[whole + (band + 1)] - start)
        staged = "S.values" in self.staged
        begin = T.bind(start - pointers[whole]) if staged else start
        values, columns = (
            self.staged[name].view if staged else flat(self.buffers[name])
            for name in ("S.values", "S.columns")
        )
        offsets = [self.staged[name].start if staged else 0 for name in ("S.values", "S.columns")]
        total = Sums(4)
        with T.serial(0, (count - first + (step - 1)) // step) as k:
            tile = T.bind(begin + (k * step + first))
            at = T.bind(tile * BAND + block.lane % 4 * 4 + offsets[1])
            gathered = [T.bind(z(T.bind(int32(columns[at + j])))) for j in range(4)]
            address = T.address_of(values[tile * (BAND * BAND) + block.lane * 8 + offsets[0]])
            name = f"doping_mma_{self.name}"
            T.evaluate(
                cuda_func_call(
                    name, T.address_of(total.buffer[0]), address, *gathered, source_code=self.source
                )
            )
        return total
