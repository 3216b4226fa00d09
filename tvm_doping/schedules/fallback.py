"""The schedule that never declines: scalar code and CSR, for any CPU that LLVM knows. Slow, and right."""

from __future__ import annotations

from tvm_doping.kernels.plan import Config
from tvm_doping.schedules.layer import Candidate, Layer
from tvm_doping.targets import Target


def choose(layer: Layer, target: Target, allowed: frozenset[str] | None = None) -> Candidate:
    """CSR where S is not empty, one fp32 value at a time."""
    cycles = 2.0 * layer.sparse.nnz
    return Candidate(
        format="csr" if layer.sparse.nnz else None,
        params={"multiple": 4} if layer.sparse.nnz else {},
        config=Config(lanes=1, registers=8),
        cycles=cycles,
        tile_cycles=cycles,
        bytes=8.0 * layer.sparse.nnz,
        reason=f"no schedule knows {target.name}: scalar code",
    )


def space(layer: Layer, target: Target) -> list[Candidate]:
    """The one candidate."""
    return [choose(layer, target)]
