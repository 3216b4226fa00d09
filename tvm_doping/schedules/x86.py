"""The schedules of x86-64: SSE4 (v2), AVX2 (v3), AVX-512 (v4).

Which format is fastest follows from two limits, the larger of which a product takes: the cycles its instructions need, and the
bytes of its indices and values over the bandwidth of the cache that holds them (`x86_costs`). The weight multiplied out, dense,
is one of the candidates: a doped layer is not to be slower than the dense one that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from tvm_doping.kernels.plan import Alternative, Config
from tvm_doping.schedules import x86_costs as costs
from tvm_doping.schedules.layer import DENSE, Candidate, Declined, Layer
from tvm_doping.schedules.x86_costs import Cost
from tvm_doping.sparsity.values import VALUE_BYTES, ValueType
from tvm_doping.targets import Target

# A model is doped to be small: a format that stores more than this times the bytes of the most compact one is not chosen unless
# it is forced (16x1 blocks of an unstructured S would be a little faster at times, and ten times as large). Dense is exempt.
_MOST_BYTES = 2.5
# Of formats this close to the fastest, the smallest is chosen: the prediction is no better than that.
_CLOSE = 1.1
# Cycles to widen a vector of narrow values: a conversion that takes its operand from memory, beside which little else changes;
# a scalar of CSR, which has to go through a vector register. Of a tile's FMA, where values are widened into a buffer.
_WIDEN, _WIDEN_ONE, _WIDEN_TILE = 0.1, 0.1, 1.15
# Of a tile of two vectors of streams, times a tile of one: the index and the broadcast of a nonzero then serve both (measured with
# AVX2, H = 650 and 1500: sell16 1.4-1.55; dense and Kronecker products have larger register tiles).
_PAIR: dict[str | None, float] = {"csr": 1.5, "sell16": 1.55, DENSE: 1.75}
_PAIR_BLOCK = 1.7


def choose(layer: Layer, target: Target, allowed: frozenset[str] | None = None) -> Candidate | Declined:
    """The candidate predicted to be fastest (among the `allowed` formats, where a user forces one)."""
    if not target.name.startswith("x86-64"):
        return Declined(reason=f"x86: {target.name} is not an x86-64 target")
    weighed = sorted(space(layer, target), key=lambda c: _time(c, layer))
    candidates = [c for c in weighed if allowed is None or c.format is None or c.format in allowed]
    if not candidates and not layer.sparse.nnz:
        candidates = weighed  # a dense weight, which has no S to store in a format
    if not candidates:
        reasons = [f"{name}: {_refusal(name, layer, target)}" for name in sorted(allowed or ())]
        return Declined(reason="x86: " + "; ".join(reasons))

    def best(some: list[Candidate]) -> Candidate:
        most = _MOST_BYTES * min((c.bytes for c in some if c.format != DENSE), default=0.0)
        some = [c for c in some if c.format == DENSE or c.bytes <= most]
        close = _CLOSE * min(_time(c, layer) for c in some)
        return min((c for c in some if _time(c, layer) <= close), key=lambda c: c.bytes)

    full = [c for c in candidates if c.values == "fp32"]
    if not full:  # perm64 was forced
        return best(candidates)
    chosen = exact = best(full)
    # Narrow values are taken where they make the weight smaller and no slower, beyond what the prediction can tell.
    narrow = [
        c
        for c in candidates
        if c.values != "fp32" and c.bytes <= exact.bytes and _time(c, layer) <= _CLOSE * _time(exact, layer)
    ]
    if narrow:
        chosen = best(narrow)
    return replace(chosen, alternatives=tuple(_alternative(c, layer) for c in weighed))


def _time(c: Candidate, layer: Layer) -> float:
    """Cycles of a step of all streams: whole tiles, and the rest as a tile or one by one."""
    full, rest = divmod(layer.batch * layer.steps, c.config.tile)
    return (full * c.tile_cycles + min(rest * c.cycles, c.tile_cycles)) / layer.steps


def _alternative(c: Candidate, layer: Layer) -> Alternative:
    return Alternative(
        format=c.format,
        values=c.values,
        lanes=c.config.lanes,
        tile=c.config.tile,
        cycles=round(_time(c, layer)),
        bytes=round(c.bytes),
        reason=c.reason,
    )


def space(layer: Layer, target: Target) -> list[Candidate]:
    """Every way to run this product on this target, with its predicted cycles."""
    names = [name for name in _ESTIMATES if _refusal(name, layer, target) is None]
    found: list[Candidate] = []
    for lanes, vectors in _widths(layer, target):
        part = costs.structured(layer, target, lanes)
        ways: list[tuple[str | None, Cost, Cost]] = []  # the format, what it costs, and what goes with it
        if layer.sparse.nnz:
            ways = [
                (name, _ESTIMATES[name](layer, target, lanes), part)
                for name in names
                if name not in _FULL_WIDTH or lanes == target.lanes
            ]
        elif layer.part.kind != "dense":
            ways = [(None, costs.NOTHING, part)]
        if layer.part.kind != "zero" or layer.sparse.nnz:
            ways.append((DENSE, costs.dense(layer, target, lanes), costs.NOTHING))
        found += [
            _candidate(name, cost, extra, layer, target, (lanes, vectors), values)
            for name, cost, extra in ways
            for values in _stored_as(name, cost.stored + extra.stored, layer, target)
        ]
    return found


def _widths(layer: Layer, target: Target) -> tuple[tuple[int, int], ...]:
    """(lanes of a vector, vectors of a tile) to choose from: a batch that fits half a vector would leave half of a tile empty,
    one that fills more than one is faster by two at a time (with AVX-512 that is not measured)."""
    lanes, half = target.lanes, target.lanes // 2
    if layer.batch > lanes and lanes < 16:
        return ((lanes, 1), (lanes, 2))
    return ((half, 1), (lanes, 1)) if 1 < layer.batch <= half else ((lanes, 1),)  # of equals the first is taken


def _types(layer: Layer, target: Target) -> tuple[ValueType, ...]:
    """How values may be stored: in fp32, and as low as the precision allows where the CPU converts it in vectors."""
    if layer.precision == "exact" or (layer.precision == "fp16" and not target.has("f16c")):
        return ("fp32",)
    return ("fp32", layer.precision)


def _stored_as(name: str | None, stored: float, layer: Layer, target: Target) -> tuple[ValueType, ...]:
    """The types to choose from for so many stored values."""
    if name == "perm64":
        return ("bf16",)
    return _types(layer, target) if stored else ("fp32",)


def _note_of(layer: Layer, target: Target) -> str:
    """Why values stay in fp32 where narrow ones were allowed."""
    none = layer.precision != "exact" and len(_types(layer, target)) == 1
    return f"; fp32 values, as {target.name} has no f16c to convert fp16" if none else ""


def _candidate(
    name: str | None,
    cost: Cost,
    extra: Cost,
    layer: Layer,
    target: Target,
    width: tuple[int, int],
    values: ValueType,
) -> Candidate:
    """S in a format, and the structured part `extra` beside it; width: lanes and vectors."""
    lanes, vectors = width
    wider = (_PAIR.get(name, _PAIR_BLOCK), _PAIR[DENSE]) if vectors == 2 else (1.0, 1.0)
    if values != "fp32":
        cost, extra = _narrow(name, cost, values, lanes), _narrow(DENSE, extra, values, lanes)
    whole = cost.bytes + extra.bytes
    cycles = one = tile = transfer = 0.0
    for each, factor in zip((cost, extra), wider, strict=True):
        read = costs.reading(each.bytes, whole, target)
        transfer += read
        cycles += max(read, each.cycles)
        one += max(read, each.tile)
        tile += max(read, each.tile * factor)
    bound = "reading" if transfer > 0.5 * cycles else "computing"
    stored = "" if values == "fp32" else f", {values} values"
    return Candidate(
        format=name,
        params=cost.params,
        config=_config(target, lanes, vectors, tile / max(1.0, cycles), one / max(1.0, cycles)),
        cycles=cycles,
        tile_cycles=tile,
        bytes=whole,
        reason=f"{cost.note}{stored}{_note_of(layer, target)}; "
        f"{cycles / 1000:.3g}k cycles a step predicted, bound by {bound}",
        values=values,
    )


def _narrow(name: str | None, cost: Cost, values: ValueType, lanes: int) -> Cost:
    """The same with values stored in fewer bytes."""
    size = cost.bytes - (4 - VALUE_BYTES[values]) * cost.stored
    if name == DENSE:
        return replace(cost, bytes=size)  # bound by reading: never slower for being narrow
    widened = _WIDEN_ONE if name == "csr" else _WIDEN / min(lanes, _LANES_OF.get(name or "", lanes))
    if name == "perm64":  # which multiplies them as they are
        widened = 0.0
    return replace(
        cost, bytes=size, cycles=cost.cycles + widened * cost.stored, tile=cost.tile * _WIDEN_TILE
    )


def _config(target: Target, lanes: int, vectors: int, worth: float, steps_worth: float) -> Config:
    """The registers are the instruction set's; a tile pays from `worth` streams on. Steps run as tiles of one vector: two were no
    faster at T = 35, where a second tile is for the most part padding, and their projections stay longer in the cache."""

    def least(worth: float, width: int) -> int:
        return max(2, min(width, int(np.ceil(worth))))

    return Config(
        lanes=lanes,
        registers=32 if target.lanes == 16 else 16,
        tile=lanes * vectors,
        tile_from=least(worth, lanes * vectors),
        steps=lanes,
        steps_from=least(steps_worth, lanes),
    )


def _refusal(name: str, layer: Layer, target: Target) -> str | None:
    """Why a format cannot serve, or None."""
    if name not in _ESTIMATES:
        return f"no such format on x86 (there are {', '.join(_ESTIMATES)})"
    if name == "perm8" and not target.has("avx2"):
        return "vpermps needs avx2"
    if name in _FULL_WIDTH and not target.has("avx512f"):
        return "vpermi2ps and vexpandps need avx512f"
    if name == "perm64" and not target.has("avx512_bf16"):
        return "vdpbf16ps needs avx512_bf16"
    if name == "perm64" and layer.precision != "bf16":
        return f"it rounds S and x to bf16, which precision {layer.precision} does not allow"
    if name == "sell16" and layer.columns > 65536:
        return f"16-bit indices reach 65536 columns, the layer has {layer.columns}"
    return None


_LANES_OF = {"sell16": 8, "perm8": 8, "block4": 4}  # whose kernels work on shorter vectors than the target's
_FULL_WIDTH = ("perm32", "perm32_expand")  # written for AVX-512 registers
_ESTIMATES: dict[str, Callable[[Layer, Target, int], Cost]] = {
    "csr": costs.csr,
    "sell16": costs.sell16,
    "perm8": costs.perm8,
    "perm32": costs.perm32,
    "perm32_expand": costs.perm32_expand,
    "perm64": costs.perm64,
    "block4": costs.block(4),
    "block8": costs.block(8),
    "block16": costs.block(16),
}
