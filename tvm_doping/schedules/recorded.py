"""Plans from tuning records: what was measured goes before what is predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TypeVar

import numpy as np

from tvm_doping.kernels.plan import LinearPlan, LstmPlan, Part, Product
from tvm_doping.records import Book, Choice, Found, Key, Numbers, Way, Weight, batch_class
from tvm_doping.records.book import SAME
from tvm_doping.records.model import DENSE, PRODUCTS
from tvm_doping.schedules.layer import Layer
from tvm_doping.sparsity import FORMATS, PATTERNS
from tvm_doping.targets import Target

_Plan = TypeVar("_Plan", LstmPlan, LinearPlan)
_LANES = 16


def recorded(
    plan: _Plan, layers: Mapping[str, Layer], *, target: Target, threads: int, records: Book
) -> _Plan:
    """The plan of the nearest record, or the predicted `plan` where none is near; layers: those of its products, by name."""
    key = key_of(layers, threads)
    found = records.find(operation_of(plan), key, target)
    if found is None:
        return plan
    plan = apply(plan, layers, found.record.choice)
    said = _said(found)
    return replace(plan, reason=f"{said}; {_in_words(plan)}", record=said)


def apply(plan: _Plan, layers: Mapping[str, Layer], choice: Choice) -> _Plan:
    """The plan with its products and numbers as chosen; what was weighed stays with it."""
    products = {name: _product(layers[name], getattr(plan, name), way) for name, way in choice.ways.items()}
    return replace(plan, config=replace(plan.config, **choice.numbers.model_dump()), **products)  # type: ignore[arg-type]


def choice_of(plan: LstmPlan | LinearPlan) -> Choice:
    """What `apply` makes the same plan of."""
    ways = {}
    for name in PRODUCTS[operation_of(plan)]:
        product: Product = getattr(plan, name)
        dense = product.part.kind == "dense" and product.sparse is None
        ways[name] = Way(
            format=DENSE if dense else product.sparse,
            params=full_params(product.sparse, product.params),
            stripes=product.stripes,
            values=product.values,
            dot=product.dot,
            order=product.part.order,
        )
    numbers = {key: value for key, value in asdict(plan.config).items() if key in Numbers.model_fields}
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
    config = plan.config
    return f"{' and '.join(formats)}; {config.lanes} lanes, tiles of {config.tile} streams and {config.steps} steps"
