"""z[indices] as one vector: by single loads into its lanes, or by SVE's gather."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.emit import Buffer, Expr, load, unpacked
from tvm_doping.kernels.plan import Config
from tvm_doping.kernels.scope import Scope

# SVE has vectors of any length: four lanes, which the shortest has, are taken of it, so that code for one length runs on all.
_SVE = 4


def gathered(scope: Scope, indices: Buffer, at: Expr, lanes: int, row: Expr | None = None) -> Expr:
    """z at `lanes` consecutive stored indices from `at` on (of the buffer's row `row`)."""
    if scope.config.gather == "sve" and lanes == _SVE:
        columns = tirx.Cast("int32x4", load(indices, at, lanes, row))
        return tirx.call_pure_extern("float32x4", "doping_gather", T.address_of(scope.z[0]), columns)
    return T.Shuffle([scope.z[column] for column in unpacked(indices, at, lanes, row)], list(range(lanes)))


def scope(config: Config) -> AbstractContextManager[Any]:
    """In which `gathered` may be called."""
    return T.attr(0, "pragma_import_llvm", _GATHER) if config.gather == "sve" else nullcontext()


# linkonce_odr: every kernel of a library brings its own, and none is left where all calls are inlined.
_GATHER = """
define linkonce_odr <4 x float> @doping_gather(ptr %z, <4 x i32> %indices) alwaysinline nounwind {
  %i = call <vscale x 4 x i32> @llvm.vector.insert.nxv4i32.v4i32(<vscale x 4 x i32> poison, <4 x i32> %indices, i64 0)
  %four = call <vscale x 4 x i1> @llvm.aarch64.sve.ptrue.nxv4i1(i32 4)
  %x = call <vscale x 4 x float> @llvm.aarch64.sve.ld1.gather.uxtw.index.nxv4f32(
    <vscale x 4 x i1> %four, ptr %z, <vscale x 4 x i32> %i)
  %r = call <4 x float> @llvm.vector.extract.v4f32.nxv4f32(<vscale x 4 x float> %x, i64 0)
  ret <4 x float> %r
}
declare <vscale x 4 x i32> @llvm.vector.insert.nxv4i32.v4i32(<vscale x 4 x i32>, <4 x i32>, i64)
declare <vscale x 4 x i1> @llvm.aarch64.sve.ptrue.nxv4i1(i32)
declare <vscale x 4 x float> @llvm.aarch64.sve.ld1.gather.uxtw.index.nxv4f32(<vscale x 4 x i1>, ptr, <vscale x 4 x i32>)
declare <4 x float> @llvm.vector.extract.v4f32.nxv4f32(<vscale x 4 x float>, i64)
"""
