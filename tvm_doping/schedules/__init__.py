"""How a layer runs on a target: each schedule chooses a format and a Config, or declines with a reason; `fallback` never does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tvm_doping.errors import ScheduleError
from tvm_doping.kernels import product
from tvm_doping.kernels.plan import LinearPlan, LstmPlan, Part, Product
from tvm_doping.schedules import fallback, x86
from tvm_doping.schedules.layer import Candidate, Declined, Layer
from tvm_doping.targets import Target

__all__ = ["SCHEDULES", "Candidate", "Declined", "Layer", "choose_linear", "choose_lstm", "layer_of"]

SCHEDULES: dict[str, Callable[..., Candidate | Declined]] = {"x86": x86.choose, "fallback": fallback.choose}

# Each part of a concatenated input begins at a multiple of a stripe, so that no stripe looks into two of them.
_STRIPE = 32


def choose_lstm(
    w_ih: Any, w_hh: Any, *, reverse: bool, target: Target, batch: int = 1, force: dict[str, Any] | None = None
) -> LstmPlan:
    """The plan of an LSTM layer: w_ih (4H, I) and w_hh (4H, H) are structures. force={"format": name} forces a format.

    ScheduleError if every schedule declines what was forced: it lists their reasons.
    """
    inputs, hidden = int(w_ih.shape[1]), int(w_hh.shape[1])
    layer = layer_of("lstm", [w_ih, w_hh], batch)
    chosen, rejected = _choose(layer, target, force)
    return LstmPlan(
        inputs=inputs, hidden=hidden, reverse=reverse, product=_product(layer, chosen), config=chosen.config,
        reason=chosen.reason, rejected=rejected,
    )  # fmt: skip


def choose_linear(w: Any, *, target: Target, batch: int = 1, force: dict[str, Any] | None = None) -> LinearPlan:
    """The plan of a linear layer with the structure w (O, I); batch: the rows of its input to be fast for."""
    layer = layer_of("linear", [w], batch)
    chosen, rejected = _choose(layer, target, force)
    return LinearPlan(
        inputs=layer.columns, outputs=layer.rows, product=_product(layer, chosen), config=chosen.config,
        reason=chosen.reason, rejected=rejected,
    )  # fmt: skip


def layer_of(operation: Any, structures: list[Any], batch: int = 1) -> Layer:
    """The layer of structures that share their output rows, their inputs concatenated with the gaps that kernels need."""
    parts: list[Part] = []
    at = 0
    for structure in structures:
        parts.append(product.part_of(structure, at))
        at = -(-(at + int(structure.shape[1])) // _STRIPE) * _STRIPE
    rows = int(structures[0].shape[0])
    columns = parts[-1].offset + parts[-1].shape[1]
    empty = Product(rows=rows, columns=columns, parts=tuple(parts))
    s = product.concatenate(empty, [product.sparse_of(structure) for structure in structures])
    return Layer(operation=operation, rows=rows, columns=columns, parts=tuple(parts), sparse=s, batch=batch)


def _choose(layer: Layer, target: Target, force: dict[str, Any] | None) -> tuple[Candidate, tuple[str, ...]]:
    allowed = frozenset([force["format"]]) if force and force.get("format") else None
    reasons: list[str] = []
    for name, choose in SCHEDULES.items():
        if allowed is not None and name == "fallback" and allowed != {"csr"}:
            break
        answer = choose(layer, target, allowed)
        if isinstance(answer, Candidate):
            return answer, tuple(reasons)
        reasons.append(answer.reason)
    raise ScheduleError(
        f"the format {', '.join(sorted(allowed or ()))} for a {layer.rows} x {layer.columns} layer on {target.name}",
        "a schedule that accepts it",
        "; ".join(reasons),
        "Choose another format, or leave the choice to the schedules.",
    )


def _product(layer: Layer, chosen: Candidate) -> Product:
    return Product(
        rows=layer.rows, columns=layer.columns, parts=layer.parts, sparse=chosen.format,
        nnz=int(np.asarray(layer.sparse.nnz)), params=dict(chosen.params),
    )  # fmt: skip


