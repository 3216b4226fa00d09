"""Plans from tuning records: what was measured goes before what is predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TypeVar

import numpy as np

from tvm_doping.kernels.plan import Grid, LinearPlan, LstmPlan, Part, Product
from tvm_doping.records import (
    Book,
    Choice,
    Found,
    GridNumbers,
    Key,
    Numbers,
    Record,
    Way,
    Weight,
    batch_class,
)
from tvm_doping.records.book import SAME
from tvm_doping.records.model import DENSE, PRODUCTS
from tvm_doping.schedules.grids import MOST_COLUMNS, grid_of, tight, why_not
from tvm_doping.schedules.layer import Layer
from tvm_doping.sparsity import FORMATS, PATTERNS
from tvm_doping.targets import Target

_Plan = TypeVar("_Plan", LstmPlan, LinearPlan)
_LANES = 16


def recorded(
    plan: _Plan, layers: Mapping[str, Layer], *, target: Target, threads: int, records: Book | None
) -> _Plan:
    """The plan of the nearest record, or the predicted `plan` where none is near; layers: those of its products, by name.

    On a GPU, of those whose numbers this layer and target allow (`illegal`).
    """
    if records is None or not records.files:
        return plan

    def serves(record: Record) -> bool:
        if record.choice.gpu != bool(target.gpu):
            return False
        return not record.choice.gpu or illegal(apply(plan, layers, record.choice), target) is None

    found = records.find(operation_of(plan), key_of(layers, threads), target, serves)
    if found is None:
        return plan
    plan = apply(plan, layers, found.record.choice)
    said = _said(found)
    return replace(plan, reason=f"{said}; {_in_words(plan)}", record=said)


def apply(plan: _Plan, layers: Mapping[str, Layer], choice: Choice) -> _Plan:
    """The plan with its products and numbers as chosen; what was weighed stays with it.

    A grid keeps the plan's limits; of its parts those are left out that have nothing of this layer.
    """
    products = {name: _product(layers[name], getattr(plan, name), way) for name, way in choice.ways.items()}
    numbers = choice.numbers.model_dump(exclude={"grid"})
    config = replace(plan.config, **numbers, grid=_grid(plan, choice.numbers.grid))
    return replace(plan, config=config, **products)  # type: ignore[arg-type]


def illegal(plan: LstmPlan | LinearPlan, target: Target) -> str | None:
    """Why a plan's grid and products cannot run on a GPU; None where they can."""
    products: list[Product] = [getattr(plan, name) for name in plan.products]
    assert plan.config.grid is not None
    for product in products:
        if product.sparse is not None and product.columns > MOST_COLUMNS:
            return f"S with {product.columns} columns, of which its indices count {MOST_COLUMNS}"
    return why_not(plan.config.grid, products, *_units(plan), target)


def choice_of(plan: LstmPlan | LinearPlan) -> Choice:
    """What `apply` makes the same plan of."""
    ways = {}
    for name in PRODUCTS[operation_of(plan)]:
        product: Product = getattr(plan, name)
        dense = product.part.kind == "dense" and product.sparse is None
        ways[name] = Way(
            format=DENSE if dense else product.sparse,
            # on a GPU they follow from the parts
            params={} if plan.config.grid else full_params(product.sparse, product.params),
            stripes=product.stripes,
            values=product.values,
            dot=product.dot,
            order=product.part.order,
        )
    numbers = {key: value for key, value in asdict(plan.config).items() if key in Numbers.model_fields}
    if grid := numbers["grid"]:
        numbers["grid"] = {key: grid[key] for key in GridNumbers.model_fields}
    return Choice(ways=ways, numbers=Numbers(**numbers))


def full_params(format: str | None, params: Mapping[str, int]) -> dict[str, int]:
    """The packing parameters of a format, those that were left out at their defaults: one way is then written in one way."""
    return {**(FORMATS[format].defaults if format in FORMATS else {}), **params}


def operation_of(plan: LstmPlan | LinearPlan) -> str:
    """As records name it."""
    return "lstm" if isinstance(plan, LstmPlan) else "linear"


def key_of(layers: Mapping[str, Layer], threads: int) -> Key:
    """What a layer's record is looked up by."""
    first = next(iter(layers.values()))
    return Key(
        weights={name: _weight(layer) for name, layer in layers.items()},
        precision=first.precision,
        batch=batch_class(first.batch),
        threads=threads,
    )


def _grid(plan: LstmPlan | LinearPlan, numbers: GridNumbers | None) -> Grid | None:
    """The grid of these numbers for the plan's layer."""
    if numbers is None:
        return None
    assert plan.config.grid is not None
    parts = tight(_units(plan)[0], numbers.parts)
    return grid_of(parts, numbers.threads, numbers.tile_from, plan.config.grid.shared)


def _units(plan: LstmPlan | LinearPlan) -> tuple[int, int]:
    """What a grid divides among blocks: the hidden units, of four gates, or the rows."""
    return (plan.hidden, 4) if isinstance(plan, LstmPlan) else (plan.outputs, 1)


def _product(layer: Layer, predicted: Product, way: Way) -> Product:
    if way.format == DENSE:
        part = Part(kind="dense", shape=layer.part.shape)
        return replace(predicted, part=part, sparse=None, nnz=0, params={}, values=way.values, dot=way.dot)
    part = layer.part
    if part.kind == "kronecker":
        part = replace(part, order=way.order)
    nnz = int(layer.sparse.nnz)
    return replace(
        predicted,
        part=part,
        sparse=way.format,
        nnz=nnz,
        params=way.params,
        stripes=way.stripes,
        values=way.values,
        dot=way.dot,
    )


def _weight(layer: Layer) -> Weight:
    counts = np.sort(np.diff(layer.sparse.indptr))[::-1]
    slots = _LANES * int(np.pad(counts, (0, -len(counts) % _LANES)).reshape(-1, _LANES).max(axis=1).sum())
    nnz = int(layer.sparse.nnz)
    return Weight(
        rows=layer.rows,
        columns=layer.columns,
        kind=layer.part.kind,
        dims=layer.part.dims,
        nnz=nnz,
        pattern=_pattern(layer),
        fill=round(nnz / slots, 3) if slots else 1.0,
    )


def _pattern(layer: Layer) -> str:
    """The most regular of the training's patterns that S keeps: the one that makes S of S's own places."""
    s = layer.sparse
    if not s.nnz:
        return "none"
    places = np.zeros(s.shape, bool)
    places[np.repeat(np.arange(s.shape[0]), np.diff(s.indptr)), s.indices] = True
    density = s.nnz / places.size
    names = ("block16", "block8", "block4", "nm32")
    return next((name for name in names if (PATTERNS[name](places, density) == places).all()), "unstructured")


def _said(found: Found) -> str:
    record = found.record
    times = " and ".join(
        f"{us:.4g} us at T = {T} (predicted choice {record.heuristic_us[T]:.4g})"
        for T, us in record.us.items()
    )
    whose = "tuned" if found.distance <= SAME else f"tuned for a layer nearby (distance {found.distance:.2f})"
    return f"{whose}: {times}, best of {record.trials} on {found.device.cpu}"


def _in_words(plan: LstmPlan | LinearPlan) -> str:
    formats = [getattr(plan, name).format for name in PRODUCTS[operation_of(plan)]]
    config, grid = plan.config, plan.config.grid
    if grid is not None:
        side = f"32 streams side by side from {grid.tile_from} on"
        return f"{' and '.join(formats)}; {grid.parts} blocks of {grid.threads} threads, {side}"
    return f"{' and '.join(formats)}; {config.lanes} lanes, tiles of {config.tile} streams and {config.steps} steps"
