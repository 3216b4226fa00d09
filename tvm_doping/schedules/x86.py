"""The schedules of x86-64: SSE4 (v2), AVX2 (v3), AVX-512 (v4).

Which format is fastest follows from two limits, the larger of which a product takes: the cycles its instructions need, and the
bytes of its indices and values over the bandwidth of the cache that holds them. The constants were measured on one core of AMD
Zen 4 and Zen 5 servers; only their ratios matter to the choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import sparse as sp

from tvm_doping.kernels.plan import Config
from tvm_doping.schedules.layer import Candidate, Declined, Layer
from tvm_doping.sparsity.values import VALUE_BYTES, ValueType
from tvm_doping.targets import Target

# Bytes a cycle that one core reads from its L2, its L3, and memory (Zen 5 at 4 GHz: 250, 100 and 36 GB/s).
_L2, _L3, _MEMORY = 60.0, 25.0, 9.0
# Cycles of one FMA of a tile with the load of its vector of streams and of its index: where the tile's inputs fit the L1 beside
# the weights that pass through it, and where they come from the L2.
_TILE_FMA, _TILE_FMA_L2, _SHARE_OF_L1 = 1.1, 1.5, 0.7
# A model is doped to be small: a format that stores more than this times the bytes of the most compact one is not chosen unless
# it is forced (16x1 blocks of an unstructured S would be a little faster at times, and ten times as large).
_MOST_BYTES = 2.5
# Of formats this close to the fastest, the smallest is chosen: the prediction is no better than that.
_CLOSE = 1.1
# Cycles to widen a vector of narrow values: a conversion that takes its operand from memory, beside which little else changes;
# a scalar of CSR, which has to go through a vector register. Of a tile's FMA, where values are widened into a buffer.
_WIDEN, _WIDEN_ONE, _WIDEN_TERM = 0.1, 0.1, 1.15
# A cache is shared by the products of a model, four for a two-layer LSTM, and by what runs beside it.
_SHARE = 0.12


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """cycles: of one stream; terms: FMAs of a tile; stored: values, padding included; bytes, with values of fp32; why."""

    cycles: float
    terms: float
    stored: float
    bytes: float
    note: str
    params: dict[str, int] = field(default_factory=dict)


def choose(layer: Layer, target: Target, allowed: frozenset[str] | None = None) -> Candidate | Declined:
    """The candidate predicted to be fastest (among the `allowed` formats, where a user forces one)."""
    if not target.name.startswith("x86-64"):
        return Declined(reason=f"x86: {target.name} is not an x86-64 target")
    candidates = [
        c for c in space(layer, target) if allowed is None or c.format in allowed or c.format is None
    ]
    if not candidates:
        reasons = [f"{name}: {_refusal(name, layer, target)}" for name in sorted(allowed or ())]
        return Declined(reason="x86: " + "; ".join(reasons))

    def time(c: Candidate) -> float:
        full, rest = divmod(layer.batch, c.config.lanes)
        return full * c.tile_cycles + min(rest * c.cycles, c.tile_cycles)

    def best(some: list[Candidate]) -> Candidate:
        least = _MOST_BYTES * min(c.bytes for c in some)
        some = [c for c in some if c.bytes <= least]
        close = _CLOSE * min(map(time, some))
        return min((c for c in some if time(c) <= close), key=lambda c: c.bytes)

    full = [c for c in candidates if c.values == "fp32"]
    if not full:  # perm64 was forced
        return best(candidates)
    exact = best(full)
    # Narrow values are taken where they make the weight smaller and no slower, beyond what the prediction can tell.
    narrow = [
        c
        for c in candidates
        if c.values != "fp32" and c.bytes <= exact.bytes and time(c) <= _CLOSE * time(exact)
    ]
    return best(narrow) if narrow else exact


def space(layer: Layer, target: Target) -> list[Candidate]:
    """Every format that this product can take on this target, with its predicted cycles."""
    if not layer.sparse.nnz:
        dense = layer.part.kind in ("dense", "low_rank", "hybrid")
        types = _types(layer, target) if dense else ("fp32",)
        return [
            Candidate(
                format=None,
                config=_config(target, _widths(layer, target)[0], 4),
                cycles=0.0,
                tile_cycles=0.0,
                bytes=0.0,
                reason=f"S is empty{_stored(values)}{_note_of(layer, target)}",
                values=values,
            )
            for values in types  # a dense product is bound by reading: never slower for being narrow
        ]
    return [
        candidate
        for name, estimate in _ESTIMATES.items()
        if _refusal(name, layer, target) is None
        for cost in [estimate(layer, target)]
        for values in (("bf16",) if name == "perm64" else _types(layer, target))
        for candidate in _candidates(name, cost, layer, target, values)
    ]


def _widths(layer: Layer, target: Target) -> tuple[int, ...]:
    """The lanes to choose from: a batch that fits half a vector would leave the other half of a tile empty."""
    half = target.lanes // 2
    return (half, target.lanes) if 1 < layer.batch <= half else (target.lanes,)  # of equals the first is taken


def _types(layer: Layer, target: Target) -> tuple[ValueType, ...]:
    """How values may be stored: in fp32, and as low as the precision allows where the CPU converts it in vectors."""
    if layer.precision == "exact" or (layer.precision == "fp16" and not target.has("f16c")):
        return ("fp32",)
    return ("fp32", layer.precision)


def _stored(values: ValueType) -> str:
    return "" if values == "fp32" else f", {values} values"


def _note_of(layer: Layer, target: Target) -> str:
    """Why values stay in fp32 where narrow ones were allowed."""
    none = layer.precision != "exact" and len(_types(layer, target)) == 1
    return f"; fp32 values, as {target.name} has no f16c to convert fp16" if none else ""


def _candidates(
    name: str, cost: _Cost, layer: Layer, target: Target, values: ValueType
) -> list[Candidate]:
    widths = (target.lanes,) if name in _FULL_WIDTH else _widths(layer, target)
    return [_candidate(name, cost, layer, target, lanes, values) for lanes in widths]


def _candidate(
    name: str, cost: _Cost, layer: Layer, target: Target, lanes: int, values: ValueType
) -> Candidate:
    size = cost.bytes - (4 - VALUE_BYTES[values]) * cost.stored
    if values != "fp32":
        widened = _WIDEN_ONE if name == "csr" else _WIDEN / min(lanes, _LANES_OF.get(name, lanes))
        if name == "perm64":  # which multiplies them as they are
            widened = 0.0
        cost = replace(cost, cycles=cost.cycles + widened * cost.stored, terms=cost.terms * _WIDEN_TERM)
    bandwidth = _L2 if size < _SHARE * target.l2 else _L3 if size < _SHARE * target.l3 else _MEMORY
    transfer = size / bandwidth
    close = layer.columns * lanes * 4 < _SHARE_OF_L1 * target.l1
    tile = max(transfer, cost.terms * (_TILE_FMA if close else _TILE_FMA_L2))
    cycles = max(transfer, cost.cycles)
    bound = "reading" if transfer > cost.cycles else "computing"
    reason = (
        f"{cost.note}{_stored(values)}{_note_of(layer, target)}; "
        f"{cycles / 1000:.0f}k cycles a step predicted, bound by {bound}"
    )
    config = _config(target, lanes, int(np.ceil(tile / cycles)))
    return Candidate(
        format=name,
        params=cost.params,
        config=config,
        cycles=cycles,
        tile_cycles=tile,
        bytes=size,
        reason=reason,
        values=values,
    )


def _config(target: Target, lanes: int, worth: int) -> Config:
    """The registers are the instruction set's; a tile is one vector of streams, and pays from `worth` streams on."""
    worth = max(2, min(worth, lanes))
    return Config(
        lanes=lanes, registers=32 if target.lanes == 16 else 16, tile=lanes, tile_from=worth, steps=lanes, steps_from=worth
    )  # fmt: skip


def _refusal(name: str, layer: Layer, target: Target) -> str | None:
    """Why a format cannot serve, or None."""
    if name not in _ESTIMATES:
        return f"no such format on x86 (there are {', '.join(_ESTIMATES)})"
    if name in _FULL_WIDTH and not target.has("avx512f"):
        return "vpermi2ps and vexpandps need avx512f"
    if name == "perm64" and not target.has("avx512_bf16"):
        return "vdpbf16ps needs avx512_bf16"
    if name == "perm64" and layer.precision != "bf16":
        return f"it rounds S and x to bf16, which precision {layer.precision} does not allow"
    if name == "sell16" and layer.columns > 65536:
        return f"16-bit indices reach 65536 columns, the layer has {layer.columns}"
    return None


def _csr(layer: Layer, target: Target) -> _Cost:
    counts = np.diff(layer.sparse.indptr)
    padded = float((-(-counts // 4) * 4).sum())
    index = 2 if layer.columns <= 65536 else 4
    return _Cost(
        cycles=padded / 0.6 + 8 * layer.rows,
        terms=padded + 4 * layer.rows,
        stored=padded,
        bytes=padded * (4 + index),
        note=f"{layer.sparse.nnz} nonzeros",
        params={"multiple": 4},
    )


def _sell16(layer: Layer, target: Target) -> _Cost:
    counts = np.sort(np.diff(layer.sparse.indptr))[::-1]
    slots = float(np.pad(counts, (0, -len(counts) % 16)).reshape(-1, 16).max(axis=1).sum())
    return _Cost(
        cycles=slots * 16 / 1.25 + 30 * len(counts) / 16,
        terms=slots * 16,
        stored=slots * 16,
        bytes=slots * 96,
        note=f"{layer.sparse.nnz / max(1.0, slots * 16):.0%} of the slots filled",
    )


def _perm32(layer: Layer, target: Target) -> _Cost:
    return _look_up(layer, layer.slots, 2.8)


def _perm32_expand(layer: Layer, target: Target) -> _Cost:
    # more a slot: the expansion, and an unaligned load that often crosses a cache line
    return _look_up(layer, layer.slots, 3.7, expanded=True)


def _perm64(layer: Layer, target: Target) -> _Cost:
    # Not measured on hardware. By llvm-mca's models a slot takes Zen 4 what one of perm32 takes (4.1 cycles to 4.0), but Sapphire
    # Rapids 2.5 times that (5.0 to 2.0), where its half as many slots would not pay in time.
    return _look_up(layer, layer.slots64, 2.8, each=2)


def _look_up(
    layer: Layer, counts: tuple[int, int], slot: float, *, expanded: bool = False, each: int = 1
) -> _Cost:
    """The better of the two row orders. The rows of a trained S differ: with alike ones in a group, few lanes wait.

    counts: the slots of either order, with 16 * `each` nonzeros at most; `slot` cycles a slot (a look-up and an FMA, four loads), 40 a group (a mispredicted loop end), and 40 more where the sums of
    grouped rows have to be scattered to their places.
    """

    def cost(grouped: int) -> _Cost:
        groups = -(-layer.rows // 16)
        slots = float(counts[grouped])
        multiple = 4 if slots >= 32 * groups else 2
        slots += groups * (multiple - 1) / 2
        entries = slots * 16 * each
        fill = layer.sparse.nnz / max(1.0, entries)
        return _Cost(
            cycles=slot * slots + (40.0 + 40.0 * grouped) * groups,
            terms=entries,
            stored=float(layer.sparse.nnz) if expanded else entries,
            bytes=slots * 21 + 4.0 * layer.sparse.nnz if expanded else slots * 2 + entries * 5,
            note=f"{fill:.0%} of the slots filled{', alike rows grouped' if grouped else ''}",
            params={"multiple": multiple, "grouped": grouped},
        )

    return min((cost(0), cost(1)), key=lambda c: c.cycles)


def _block(rows: int) -> Callable[[Layer, Target], _Cost]:
    def estimate(layer: Layer, target: Target) -> _Cost:
        blocks = float(_count_blocks(layer.sparse, rows))
        return _Cost(
            cycles=blocks * 1.1 * max(1.0, rows / target.lanes) + 12 * layer.rows / rows,
            terms=blocks * rows * 0.6,
            stored=blocks * rows,
            bytes=blocks * (rows * 4 + 2),
            note=f"{layer.sparse.nnz / max(1.0, blocks * rows):.0%} of the blocks' values are nonzeros",
        )

    return estimate


def _count_blocks(s: sp.csr_array, rows: int) -> int:
    row = np.repeat(np.arange(s.shape[0], dtype="int64"), np.diff(s.indptr))
    return len(np.unique(row // rows * s.shape[1] + s.indices))


_LANES_OF = {"sell16": 4, "block4": 4}  # whose kernels work on shorter vectors than the target's
_FULL_WIDTH = ("perm32", "perm32_expand", "perm64")  # written for AVX-512 registers
_ESTIMATES: dict[str, Callable[[Layer, Target], _Cost]] = {
    "csr": _csr,
    "sell16": _sell16,
    "perm32": _perm32,
    "perm32_expand": _perm32_expand,
    "perm64": _perm64,
    "block4": _block(4),
    "block8": _block(8),
    "block16": _block(16),
}
