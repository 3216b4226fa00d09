"""How a schedule weighs the ways to run a product: the same for every kind of CPU, which differ in formats and numbers.

Which format is fastest follows from two limits, the larger of which a product takes: the cycles its instructions need, and the
bytes of its indices and values over the bandwidth of the cache that holds them (`costs`). The weight multiplied out, dense,
is one of the candidates: a doped layer is not to be slower than the dense one that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tvm_doping.kernels.plan import Alternative, Config, Gather
from tvm_doping.schedules import costs
from tvm_doping.schedules.costs import Cost
from tvm_doping.schedules.layer import DENSE, Candidate, Declined, Layer
from tvm_doping.schedules.rates import rate
from tvm_doping.sparsity.dots import DOTS, DotName
from tvm_doping.sparsity.values import VALUE_BYTES, ValueType
from tvm_doping.targets import Target

# A model is doped to be small: a format that stores more than this times the bytes of the most compact one is not chosen unless
# it is forced (16x1 blocks of an unstructured S would be a little faster at times, and ten times as large). Dense is exempt.
_MOST_BYTES = 2.5
# Of formats this close to the fastest, the smallest is chosen: the prediction is no better than that.
_CLOSE = 1.1
# Of a tile's FMA, where values are widened into a buffer.
_WIDEN_TILE = 1.15


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What there is to know of a kind of CPU.

    name       for messages;
    estimates  format -> what it costs; refusal: why a format cannot serve a layer on a target, or None;
    widths     (lanes of a vector, vectors of a tile) to choose from, of equals the first;
    pair       of a tile of so many vectors, times a tile of one, what a format takes on a target;
    registers  vector registers of a target; steps: vectors of a tile of steps; gather: as in Config, for a target;
    types      how values may be stored, and why not narrower, "" where they may;
    dots       the instructions that multiply narrow values as they are (sparsity.dots), which a layer may have on a target;
    lanes      of formats whose kernels work on shorter vectors than the target's; full: of those that take whole registers.
    """

    name: str
    estimates: Mapping[str, Callable[..., Cost]]
    refusal: Callable[[str, Layer, Target], str | None]
    widths: Callable[[Layer, Target], tuple[tuple[int, int], ...]]
    registers: Callable[[Target], int]
    types: Callable[[Layer, Target], tuple[tuple[ValueType, ...], str]]
    pair: Callable[[str | None, int, Layer, Target, str], float]
    steps: int = 1
    gather: Callable[[Target], Gather] = lambda target: ""
    dots: Callable[[Layer, Target], tuple[DotName, ...]] = lambda layer, target: ()
    lanes: Mapping[str, int]
    full: tuple[str, ...] = ()


def choose(
    kind: Kind, layer: Layer, target: Target, allowed: frozenset[str] | None = None
) -> Candidate | Declined:
    """The candidate predicted to be fastest (among the `allowed` formats, where a user forces one)."""
    weighed = sorted(space(kind, layer, target), key=lambda c: _time(c, layer))
    candidates = [c for c in weighed if allowed is None or c.format is None or c.format in allowed]
    if not candidates and not layer.sparse.nnz:
        candidates = weighed  # a dense weight, which has no S to store in a format
    if not candidates:
        reasons = [f"{name}: {_refusal(kind, name, layer, target)}" for name in sorted(allowed or ())]
        return Declined(reason=f"{kind.name}: " + "; ".join(reasons))

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


def space(kind: Kind, layer: Layer, target: Target) -> list[Candidate]:
    """Every way to run this product on this target, with its predicted cycles."""
    names = [name for name in kind.estimates if _refusal(kind, name, layer, target) is None]
    found: list[Candidate] = []
    for lanes, vectors in kind.widths(layer, target):
        found += [
            _candidate(kind, name, cost, extra, layer, target, (lanes, vectors), values)
            for name, cost, extra in _ways(kind, names, layer, target, lanes)
            for values in _stored_as(kind, name, cost.stored + extra.stored, layer, target)
        ]
        found += [
            _candidate(kind, name, cost, extra, layer, target, (lanes, vectors), DOTS[dot].values, dot)
            for dot in kind.dots(layer, target)
            for name, cost, extra in _ways(kind, names, layer, target, lanes, dot)
            if dot in (cost.dot, extra.dot)
        ]
    return found


def _ways(
    kind: Kind, names: list[str], layer: Layer, target: Target, lanes: int, dot: str = ""
) -> list[tuple[str | None, Cost, Cost]]:
    """The format, what it costs, and what the part beside it costs; by an instruction where it serves them."""
    part = costs.structured(layer, target, lanes, dot)
    ways: list[tuple[str | None, Cost, Cost]] = []
    if layer.sparse.nnz:
        served = DOTS[dot].formats if dot else ()
        ways = [
            (name, kind.estimates[name](layer, target, lanes, *([dot] if name in served else [])), part)
            for name in names
            if name not in kind.full or lanes == target.lanes
        ]
    elif layer.part.kind != "dense":
        ways = [(None, costs.NOTHING, part)]
    if layer.part.kind != "zero" or layer.sparse.nnz:
        ways.append((DENSE, costs.dense(layer, target, lanes, dot), costs.NOTHING))
    return ways


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
        dot=c.dot,
    )


def _refusal(kind: Kind, name: str, layer: Layer, target: Target) -> str | None:
    """Why a format cannot serve, or None."""
    if name not in kind.estimates:
        return f"no such format on {kind.name} (there are {', '.join(kind.estimates)})"
    if name == "sell16" and layer.columns > 65536:
        return f"16-bit indices reach 65536 columns, the layer has {layer.columns}"
    return kind.refusal(name, layer, target)


def _stored_as(
    kind: Kind, name: str | None, stored: float, layer: Layer, target: Target
) -> tuple[ValueType, ...]:
    """The types to choose from for so many stored values."""
    if name == "perm64":
        return ("bf16",)
    return kind.types(layer, target)[0] if stored else ("fp32",)


def _candidate(
    kind: Kind,
    name: str | None,
    cost: Cost,
    extra: Cost,
    layer: Layer,
    target: Target,
    width: tuple[int, int],
    values: ValueType,
    dot: DotName = "",
) -> Candidate:
    """S in a format, and the structured part `extra` beside it; width: lanes and vectors."""
    lanes, vectors = width
    wider, steps = (
        [kind.pair(each, v, layer, target, some.dot) for each, some in ((name, cost), (DENSE, extra))]
        for v in (vectors, kind.steps)
    )
    if values != "fp32":
        cost, extra = (
            _narrow(kind, each, some, values, target, lanes) for each, some in ((name, cost), (DENSE, extra))
        )
    whole = cost.bytes + extra.bytes
    cycles = one = tile = transfer = 0.0
    for each, factor, ahead in zip((cost, extra), wider, steps, strict=True):
        read = costs.reading(each.bytes, whole, layer, target)
        transfer += read
        cycles += max(read, each.cycles)
        one += max(read, each.tile * ahead)
        tile += max(read, each.tile * factor)
    bound = "reading" if transfer > 0.5 * cycles else "computing"
    stored = "" if values == "fp32" else f", {values} values"
    if dot:
        stored += f" and inputs, by {dot}"
    return Candidate(
        format=name,
        params=cost.params,
        config=_config(kind, target, lanes, vectors, tile / max(1.0, cycles), one / max(1.0, cycles)),
        cycles=cycles,
        tile_cycles=tile,
        bytes=whole,
        reason=f"{cost.note}{stored}{kind.types(layer, target)[1]}; "
        f"{cycles / 1000:.3g}k cycles a step predicted, bound by {bound}",
        values=values,
        dot=dot,
    )


def _narrow(kind: Kind, name: str | None, cost: Cost, values: ValueType, target: Target, lanes: int) -> Cost:
    """The same with values stored in fewer bytes."""
    size = cost.bytes - (4 - VALUE_BYTES[values]) * cost.stored
    if cost.dot:  # multiplied as they are
        return replace(cost, bytes=size)
    if name == DENSE:  # a tile widens them once for all of its streams
        widened = rate(f"widen_dense_{values}", target) / lanes
        return replace(cost, bytes=size, cycles=cost.cycles + widened * cost.stored)
    widened = rate("widen_one", target)
    if name != "csr":
        widened = rate("widen", target) / min(lanes, kind.lanes.get(name or "", lanes))
    if name == "perm64":  # which multiplies them as they are
        widened = 0.0
    return replace(cost, bytes=size, cycles=cost.cycles + widened * cost.stored, tile=cost.tile * _WIDEN_TILE)


def _config(kind: Kind, target: Target, lanes: int, vectors: int, worth: float, steps_worth: float) -> Config:
    """The registers are the instruction set's; a tile pays from `worth` streams on, one of steps from `steps_worth`."""

    def least(worth: float, width: int) -> int:
        return max(2, min(width, int(np.ceil(worth))))

    return Config(
        lanes=lanes,
        registers=kind.registers(target),
        tile=lanes * vectors,
        tile_from=least(worth, lanes * vectors),
        steps=lanes * kind.steps,
        steps_from=least(steps_worth, lanes * kind.steps),
        gather=kind.gather(target),
    )
