"""The schedules of x86-64: SSE4 (v2), AVX2 (v3), AVX-512 (v4).

Which format is fastest follows from two limits, the larger of which a step takes: the cycles its instructions need, and the bytes of
its indices and values over the bandwidth of the cache that holds them. The constants were measured on Zen 4 (AVX-512 server, one
core); only their ratios matter to the choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse as sp

from tvm_doping.kernels.plan import Config
from tvm_doping.kernels.sparse import TILED
from tvm_doping.schedules.layer import Candidate, Declined, Layer
from tvm_doping.targets import Target

# Bytes a cycle that one core reads from its L2, its L3, and memory.
_L2, _L3, _MEMORY = 27.0, 22.0, 5.5
# A block pays from this share of nonzeros among its values on: below, perm32 or CSR read fewer bytes.
_BLOCK_FILL = 0.5


@dataclass(frozen=True, kw_only=True)
class _Cost:
    cycles: float
    bytes: float
    params: dict[str, int]
    note: str


def choose(layer: Layer, target: Target, allowed: frozenset[str] | None = None) -> Candidate | Declined:
    """The candidate predicted to be fastest (among the `allowed` formats, where a user forces one)."""
    if not target.name.startswith("x86-64"):
        return Declined(reason=f"x86: {target.name} is not an x86-64 target")
    candidates = [c for c in space(layer, target) if allowed is None or c.format in allowed or c.format is None]
    if not candidates:
        reasons = [f"{name}: {_refusal(name, layer, target)}" for name in sorted(allowed or ())]
        return Declined(reason="x86: " + "; ".join(reasons))
    return min(candidates, key=lambda c: c.cycles)


def space(layer: Layer, target: Target) -> list[Candidate]:
    """Every format that this layer can take on this target, with its predicted cycles."""
    if not layer.sparse.nnz:
        return [Candidate(format=None, config=_config(layer, target, None), cycles=0.0, reason="S is empty")]
    found = []
    for name, estimate in _ESTIMATES.items():
        if _refusal(name, layer, target) is None:
            cost = estimate(layer, target)
            found.append(_candidate(name, cost, layer, target))
    return found


def _candidate(name: str, cost: _Cost, layer: Layer, target: Target) -> Candidate:
    bandwidth = _L2 if cost.bytes < 0.8 * target.l2 else _L3 if cost.bytes < 0.5 * target.l3 else _MEMORY
    transfer = cost.bytes / bandwidth
    bound = "reading" if transfer > cost.cycles else "computing"
    reason = f"{cost.note}; {max(transfer, cost.cycles) / 1000:.0f}k cycles predicted, bound by {bound}"
    return Candidate(
        format=name, params=cost.params, config=_config(layer, target, name), cycles=max(transfer, cost.cycles), reason=reason
    )


def _config(layer: Layer, target: Target, name: str | None) -> Config:
    """lanes and registers are the instruction set's. A tile is one vector of streams; it costs about as much as four streams
    one by one (measured: an FMA a nonzero, where one stream takes 1.7 cycles in CSR and 0.3 in 16x1 blocks)."""
    lanes = target.lanes
    tiled = name is None or name in TILED
    worth = 4 if name is None or name == "csr" else 8
    return Config(lanes=lanes, registers=32 if lanes == 16 else 16, tile=lanes if tiled else 0, tile_from=min(worth, lanes))


def _refusal(name: str, layer: Layer, target: Target) -> str | None:
    """Why a format cannot serve, or None."""
    if name not in _ESTIMATES:
        return f"no such format on x86 (there are {', '.join(_ESTIMATES)})"
    if name == "perm32" and not target.has("avx512f"):
        return "vpermi2ps needs avx512f"
    if name == "sell16" and layer.columns > 65536:
        return f"16-bit indices reach 65536 columns, the layer has {layer.columns}"
    if layer.batch > 1 and name not in TILED:
        return f"its index serves one stream, the batch is {layer.batch}"
    return None


def _csr(layer: Layer, target: Target) -> _Cost:
    counts = np.diff(layer.sparse.indptr)
    padded = float((-(-counts // 4) * 4).sum())
    index = 2 if layer.columns <= 65536 else 4
    cycles = padded / 0.6 + 8 * layer.rows
    if layer.batch > 1:  # one FMA a nonzero and vector of streams, and two loads
        cycles = (padded * 1.1 + 6 * layer.rows) * -(-layer.batch // target.lanes)
    return _Cost(cycles=cycles, bytes=padded * (4 + index), params={"multiple": 4}, note=f"{layer.sparse.nnz} nonzeros")


def _sell16(layer: Layer, target: Target) -> _Cost:
    counts = np.sort(np.diff(layer.sparse.indptr))[::-1]
    slots = float(np.pad(counts, (0, -len(counts) % 16)).reshape(-1, 16).max(axis=1).sum())
    fill = layer.sparse.nnz / max(1.0, slots * 16)
    return _Cost(cycles=slots * 16 / 1.25 + 30 * len(counts) / 16, bytes=slots * 96, params={}, note=f"{fill:.0%} of the slots filled")


def _perm32(layer: Layer, target: Target) -> _Cost:
    slots, cells = _cells(layer.sparse)
    fill = layer.sparse.nnz / max(1.0, slots * 16)
    groups = -(-layer.rows // 16)
    # 1.3 cycles a slot (a look-up and an FMA, a load of each), 2 a cell (its two registers), 40 a group (mispredicted loop ends)
    cycles = 1.3 * slots + 2.0 * cells + 40.0 * groups
    return _Cost(
        cycles=cycles,
        bytes=slots * 80 + cells * 2,
        params={"max_slots": 12, "sort": 0},
        note=f"{fill:.0%} of the slots filled",
    )


def _block(rows: int) -> Callable[[Layer, Target], _Cost]:
    def estimate(layer: Layer, target: Target) -> _Cost:
        blocks = float(_count_blocks(layer.sparse, rows))
        fill = layer.sparse.nnz / max(1.0, blocks * rows)
        vectors = max(1.0, rows / target.lanes)
        cycles = blocks * 1.1 * vectors + 12 * layer.rows / rows
        if layer.batch > 1:
            cycles = blocks * rows * 0.6 * -(-layer.batch // target.lanes) + 12 * layer.rows / rows
        # A format that is mostly padding must not win a tie on paper: the values are the bytes that leave the cache first.
        penalty = 1.0 if fill >= _BLOCK_FILL else 1.5
        return _Cost(
            cycles=cycles * penalty, bytes=blocks * (rows * 4 + 2), params={}, note=f"{fill:.0%} of the blocks' values are nonzeros"
        )

    return estimate


def _cells(s: sp.csr_array) -> tuple[float, float]:
    """Slots and cells of perm32 in natural row order."""
    m, n = s.shape
    stripes = -(-n // 32)
    row = np.repeat(np.arange(m), np.diff(s.indptr))
    per_lane = np.bincount(row * stripes + s.indices // 32, minlength=m * stripes).reshape(m, stripes)
    per_lane = np.pad(per_lane, ((0, -m % 16), (0, 0)))
    k = per_lane.reshape(-1, 16, stripes).max(axis=1)
    return float(k.sum()), float((k > 0).sum())


def _count_blocks(s: sp.csr_array, rows: int) -> int:
    row = np.repeat(np.arange(s.shape[0], dtype="int64"), np.diff(s.indptr))
    return len(np.unique(row // rows * s.shape[1] + s.indices))


_ESTIMATES: dict[str, Callable[[Layer, Target], _Cost]] = {
    "csr": _csr,
    "sell16": _sell16,
    "perm32": _perm32,
    "block4": _block(4),
    "block8": _block(8),
    "block16": _block(16),
}
