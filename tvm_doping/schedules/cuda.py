"""The schedules of NVIDIA GPUs: how a layer's rows are divided among the multiprocessors, and how S is stored.

No GPU was at hand when they were written: what is compared are predictions from counts (`cuda_costs`). `space` has all that is
tried where candidates are measured; what is chosen without a record is the one of it that is predicted to be fastest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm_doping.errors import ScheduleError
from tvm_doping.kernels.cuda.parts import FORMAT, LOW_RANK, TENSOR, WARP, Cut
from tvm_doping.kernels.plan import Config, Grid, LinearPlan, LstmPlan, Part, Product
from tvm_doping.schedules import cuda_costs as costs
from tvm_doping.schedules.grids import MOST_COLUMNS, options, why_not
from tvm_doping.schedules.layer import DENSE, Candidate, Layer
from tvm_doping.sparsity.values import ValueType
from tvm_doping.targets import Target

# Dense where S would hold so large a part of the weight: a slot reads a value, an index and, at an address of its own, z.
_DENSE_FROM = 0.4
# Tensor cores round z too. Unmeasured, they are taken from so many streams on, where that is predicted to be so many times as fast.
_ROUNDING_FROM, _WORTH_ROUNDING = 8, 2.0
_NAMES = {"input": "W_ih: ", "recurrent": "W_hh: "}
# What a choice is compared with in its reason.
_RIVALS: dict[str, tuple[str | None, ...]] = {
    "multiplied out": (DENSE,),
    "a nonzero at a time": (FORMAT, None),
    "on tensor cores": (TENSOR,),
}


def choose_lstm(
    layers: list[Layer], *, hidden: int, reverse: bool, target: Target, force: dict[str, Any] | None
) -> LstmPlan:
    """The plan of an LSTM layer: layers are its W_ih and W_hh. ScheduleError for a format that no kernel here reads."""
    named = dict(zip(LstmPlan.products, layers, strict=True))
    grid, products, reason = _choose(named, hidden, 4, target, force)
    return LstmPlan(
        inputs=layers[0].columns,
        hidden=hidden,
        reverse=reverse,
        input=products["input"],
        recurrent=products["recurrent"],
        config=config_of(grid),
        reason=reason,
    )


def choose_linear(layer: Layer, *, target: Target, force: dict[str, Any] | None) -> LinearPlan:
    """The plan of a linear layer: several rounds of blocks where it has many rows, of a group of 32 or more each."""
    grid, products, reason = _choose({"product": layer}, layer.rows, 1, target, force)
    return LinearPlan(
        inputs=layer.columns,
        outputs=layer.rows,
        product=products["product"],
        config=config_of(grid),
        reason=reason,
    )


def space(layer: Layer, target: Target, *, units: int, gates: int, resident: bool = False) -> list[Candidate]:
    """Every way to run a product on every grid that the target's limits allow it, with what is predicted: those of one grid side by
    side, the reasoned grid first.

    units of `gates` gates are the layer's rows; resident: of a weight that is read in every step.
    """
    found: list[Candidate] = []
    loads: dict[int, costs.Load] = {}
    legal: dict[tuple[int, int, costs.Way], bool] = {}
    for option in options(units, gates, target):
        grid = option.grid
        if grid.parts not in loads:
            loads[grid.parts] = costs.load_of(layer, Cut(units=units, gates=gates, parts=grid.parts))
        load = loads[grid.parts]
        for way, why in _ways(load):
            key = (grid.parts, grid.threads, way)
            if key not in legal:
                legal[key] = why_not(grid, [product_of(layer, way)], units, gates, target) is None
            if not legal[key]:
                continue
            found.append(
                Candidate(
                    format=DENSE if way.part.kind == "dense" else way.format,
                    config=config_of(grid),
                    cycles=costs.cycles(load, way, grid.threads, target, resident),
                    tile_cycles=costs.tile_cycles(load, way, grid.threads, target),
                    bytes=costs.stored_bytes(load, way),
                    reason=f"{option.reason}; {why}",
                    values=way.values,
                )
            )
    return found


def predicted(candidate: Candidate, layer: Layer) -> float:
    """Cycles of a multiprocessor for all streams of the layer, side by side or one by one as its grid says."""
    grid, streams = candidate.config.grid, layer.batch * layer.steps
    assert grid is not None
    # steps that are known ahead run side by side whatever their number
    if layer.steps > 1 or layer.batch >= grid.tile_from:
        return -(-streams // WARP) * candidate.tile_cycles
    return streams * candidate.cycles


def config_of(grid: Grid) -> Config:
    """A kernel has no other numbers."""
    return Config(lanes=1, registers=0, grid=grid)


def product_of(layer: Layer, way: costs.Way) -> Product:
    """The product that a way makes of a weight."""
    if way.part.kind == "dense":
        return Product(part=Part(kind="dense", shape=layer.part.shape), values=way.values)
    return Product(part=way.part, sparse=way.format, nnz=int(layer.sparse.nnz), values=way.values)


def _ways(load: costs.Load) -> list[tuple[costs.Way, str]]:
    """How a product may run, with what there is to be said of it; what is asked for first where several are as fast."""
    layer = load.layer
    narrow: tuple[ValueType, ...] = () if layer.precision == "exact" else (layer.precision,)
    types: tuple[ValueType, ...] = (*narrow, "fp32")
    found: list[tuple[costs.Way, str]] = []
    part, nnz = costs.ordered(layer.part, load.cut), int(layer.sparse.nnz)
    if part.kind != "dense" and layer.columns <= MOST_COLUMNS:
        said = f"{part.kind} kept; " if part.kind in LOW_RANK else ""
        # factors of a Kronecker product stay fp32
        stored: tuple[ValueType, ...] = types if nnz or part.kind in LOW_RANK else ("fp32",)
        for values in stored:
            if nnz and values in ("fp16", "bf16"):
                tiles = f"S on tensor cores: {load.tiles} tiles of 16 x 16 in the largest block"
                found.append((costs.Way(part=part, format=TENSOR, values=values), f"{said}{tiles}"))
            how = "rows of S in groups of a warp" if nnz else "no S"
            found.append(
                (costs.Way(part=part, format=FORMAT if nnz else None, values=values), f"{said}{how}")
            )
    dense = Part(kind="dense", shape=layer.part.shape)
    how = "dense" if part.kind == "dense" else "multiplied out"
    return [*found, *((costs.Way(part=dense, format=None, values=values), how) for values in types)]


def _choose(
    layers: Mapping[str, Layer], units: int, gates: int, target: Target, force: dict[str, Any] | None
) -> tuple[Grid, dict[str, Product], str]:
    """The grid on which the products together are predicted to be fastest, each in its fastest way, and why."""
    force = force or {}
    spaces: dict[str, dict[Grid, list[Candidate]]] = {}
    for name, layer in layers.items():
        _check_format(layer, force.get("format"), target)
        spaces[name] = {}
        # W_hh is read in every step
        for candidate in space(layer, target, units=units, gates=gates, resident=name == "recurrent"):
            assert candidate.config.grid is not None
            spaces[name].setdefault(candidate.config.grid, []).append(candidate)
    best: tuple[float, Grid, dict[str, Product], str] | None = None
    refusals: list[str] = []
    for option in options(units, gates, target):
        grid, total, products, said = option.grid, 0.0, dict[str, Product](), list[str]()
        for name, layer in layers.items():
            here = _allowed(spaces[name].get(grid, []), layer, force)
            if not here:
                break
            chosen = min(here, key=lambda candidate: _weighed(candidate, layer, force))
            total += _weighed(chosen, layer, force)
            cut = Cut(units=units, gates=gates, parts=grid.parts)
            products[name] = product_of(layer, way_of(chosen, layer, cut))
            how = chosen.reason.removeprefix(f"{option.reason}; ")
            asked = ", as was asked for" if len(here) < len(spaces[name][grid]) and force else ""
            said.append(_NAMES.get(name, "") + _said(f"{how}{asked}", chosen, spaces[name][grid], layer))
        if len(products) < len(layers):
            continue
        if best is not None and total >= best[0]:
            continue
        if why := why_not(grid, list(products.values()), units, gates, target):
            refusals.append(why)
            continue
        best = (total, grid, products, f"{option.reason}; {'; '.join(said)}")
    if best is None:
        raise ScheduleError(
            f"a layer of {units} units on {target.name}",
            f"kernels within {target.shared} bytes of shared memory a block",
            "; ".join(dict.fromkeys(refusals)) or "no grid of blocks that has them",
            "Compile it for a CPU, or make the layer narrower.",
        )
    return best[1:]


def way_of(candidate: Candidate, layer: Layer, cut: Cut) -> costs.Way:
    """The way that a candidate stands for."""
    if candidate.format == DENSE:
        part = Part(kind="dense", shape=layer.part.shape)
        return costs.Way(part=part, format=None, values=candidate.values)
    part = costs.ordered(layer.part, cut)
    return costs.Way(part=part, format=candidate.format, values=candidate.values)


def _allowed(candidates: Sequence[Candidate], layer: Layer, force: Mapping[str, Any]) -> list[Candidate]:
    """Those that the force leaves, and where it leaves open whether S is stored, the density of S."""
    kept = [candidate for candidate in candidates if candidate.format != DENSE]
    if not kept:
        return list(candidates)
    if force.get("format"):
        return [candidate for candidate in kept if candidate.format in (None, force["format"])]
    if force.get("structure") == "kept":
        return kept
    if layer.sparse.nnz > _DENSE_FROM * layer.rows * layer.columns:
        return [candidate for candidate in candidates if candidate.format == DENSE]
    return list(candidates)


def _weighed(candidate: Candidate, layer: Layer, force: Mapping[str, Any]) -> float:
    """The prediction, times what rounding has to be worth."""
    cycles = predicted(candidate, layer)
    if candidate.format != TENSOR or force.get("format"):
        return cycles
    return cycles * (_WORTH_ROUNDING if layer.batch * layer.steps >= _ROUNDING_FROM else float("inf"))


def _said(how: str, chosen: Candidate, beside: Sequence[Candidate], layer: Layer) -> str:
    """How a product runs, with its prediction and those of what was not chosen on the same grid."""
    text = f"{how} (predicted {predicted(chosen, layer):,.0f} cycles a block"
    for label, formats in _RIVALS.items():
        others = [predicted(other, layer) for other in beside if other.format in formats]
        if others and chosen.format not in formats:
            text += f", {min(others):,.0f} {label}"
    return f"{text})"


def _check_format(layer: Layer, forced: str | None, target: Target) -> None:
    what = f"the format {forced} for a {layer.rows} x {layer.columns} weight on {target.name}"
    if forced not in (None, FORMAT, TENSOR):
        raise ScheduleError(
            what,
            f"a format that CUDA kernels read: {FORMAT}, {TENSOR}",
            f"cuda: no such format (there is {FORMAT}, which holds blocks and n:m patterns without padding)",
            "Leave the choice to the schedules.",
        )
    values = "fp32" if layer.precision == "exact" else layer.precision
    if forced == TENSOR and values not in ("fp16", "bf16"):
        raise ScheduleError(
            what,
            "values in fp16 or bf16, which tensor cores multiply",
            f"cuda: values in {values}",
            "Compile with precision fp16 or bf16, or leave the choice to the schedules.",
        )
