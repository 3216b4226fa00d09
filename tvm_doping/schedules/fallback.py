"""The schedule that never declines: scalar code and CSR, for any CPU that LLVM knows. Slow, and right."""

from __future__ import annotations

from tvm_doping.kernels.plan import Alternative, Config
from tvm_doping.schedules.layer import Candidate, Layer
from tvm_doping.targets import Target


def choose(layer: Layer, target: Target, allowed: frozenset[str] | None = None) -> Candidate:
    """CSR where S is not empty, one fp32 value at a time."""
    cycles = 2.0 * layer.sparse.nnz
    name = "csr" if layer.sparse.nnz else None
    reason = f"no schedule knows {target.name}: scalar code"
    only = Alternative(
        format=name,
        values="fp32",
        lanes=1,
        tile=0,
        cycles=round(cycles * layer.batch),
        bytes=8 * layer.sparse.nnz,
        reason=reason,
    )
    return Candidate(
        format=name,
        params={"multiple": 4} if layer.sparse.nnz else {},
        config=Config(lanes=1, registers=8),
        cycles=cycles,
        tile_cycles=cycles,
        bytes=8.0 * layer.sparse.nnz,
        reason=reason,
        alternatives=(only,),
    )


def space(layer: Layer, target: Target) -> list[Candidate]:
    """The one candidate."""
    return [choose(layer, target)]
