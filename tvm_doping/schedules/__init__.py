"""How a layer runs on a target: each schedule chooses a format and a Config, or declines with a reason; `fallback` never does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from scipy import sparse as sp

from tvm_doping.errors import ScheduleError
from tvm_doping.kernels import product
from tvm_doping.kernels.plan import LinearPlan, LstmPlan, Part, Product
from tvm_doping.records import Book
from tvm_doping.schedules import arm, cuda, fallback, x86
from tvm_doping.schedules.embedding import choose_embedding
from tvm_doping.schedules.layer import DENSE, Candidate, Declined, Layer
from tvm_doping.schedules.recorded import recorded
from tvm_doping.schedules.threads import window, worth_sharing
from tvm_doping.sparsity import FORMATS
from tvm_doping.sparsity.values import Precision
from tvm_doping.targets import Target

__all__ = [
    "SCHEDULES",
    "Candidate",
    "Declined",
    "Layer",
    "choose_embedding",
    "choose_linear",
    "choose_lstm",
    "layer_of",
]

SCHEDULES: dict[str, Callable[..., Candidate | Declined]] = {
    "x86": x86.choose,
    "arm": arm.choose,
    "fallback": fallback.choose,
}


def choose_lstm(
    w_ih: Any,
    w_hh: Any,
    *,
    reverse: bool,
    target: Target,
    batch: int = 1,
    steps: int = 1,
    precision: Precision = "exact",
    threads: int = 1,
    force: dict[str, Any] | None = None,
    records: Book | None = None,
) -> LstmPlan:
    """The plan of an LSTM layer: w_ih (4H, I) and w_hh (4H, H) are structures. force={"format": name} forces a format of
    S; {"structure": "kept"} keeps a weight from being multiplied out where dense is predicted to be faster.

    steps: of a call, to be fast for. precision: how low the stored values may go. records: what was measured, which goes
    before what is predicted; a forced choice goes before both.

    ScheduleError if every schedule declines what was forced: it lists their reasons.
    """
    # Streams that run side by side leave no lanes to steps.
    ahead = steps if batch == 1 else 1
    recurrent = replace(layer_of(w_hh, batch, precision), again=steps > 1)
    layers = [layer_of(w_ih, batch, precision, steps=ahead), recurrent]
    named = dict(zip(LstmPlan.products, layers, strict=True))
    if target.gpu:
        plan = cuda.choose_lstm(
            layers, hidden=int(w_hh.shape[1]), reverse=reverse, target=target, force=force
        )
        return plan if force else recorded(plan, named, target=target, threads=threads, records=records)
    (ih, why_not_ih), (hh, why_not_hh) = (_choose(layer, target, force) for layer in layers)
    # One width for both. Streams and steps run as tiles from the number on at which both products together are faster so.
    config = replace(
        max(ih.config, hh.config, key=lambda config: (config.lanes, config.tile)),
        tile_from=max(ih.config.tile_from, hh.config.tile_from),
        steps_from=ih.config.steps_from,
        shared=worth_sharing(ih.cycles + hh.cycles, threads),
    )
    plan = LstmPlan(
        inputs=int(w_ih.shape[1]),
        hidden=int(w_hh.shape[1]),
        reverse=reverse,
        input=_product(layers[0], ih, config.shared),
        recurrent=_product(layers[1], hh, config.shared),
        config=config,
        reason=f"W_ih: {ih.reason}; W_hh: {hh.reason}",
        rejected=(*why_not_ih, *why_not_hh),
    )
    return plan if force else recorded(plan, named, target=target, threads=threads, records=records)


def choose_linear(
    w: Any,
    *,
    target: Target,
    batch: int = 1,
    steps: int = 1,
    threads: int = 1,
    precision: Precision = "exact",
    force: dict[str, Any] | None = None,
    records: Book | None = None,
) -> LinearPlan:
    """The plan of a linear layer with the structure w (O, I); batch x steps: the rows of its input to be fast for."""
    layer = layer_of(w, batch * steps, precision)
    named = {"product": layer}
    if target.gpu:
        plan = cuda.choose_linear(layer, target=target, force=force)
        return plan if force else recorded(plan, named, target=target, threads=threads, records=records)
    chosen, rejected = _choose(layer, target, force)
    shared = worth_sharing(chosen.cycles, threads)
    plan = LinearPlan(
        inputs=layer.columns,
        outputs=layer.rows,
        product=_product(layer, chosen, shared),
        config=replace(chosen.config, shared=shared),
        reason=chosen.reason,
        rejected=rejected,
    )
    return plan if force else recorded(plan, named, target=target, threads=threads, records=records)


def layer_of(structure: Any, batch: int = 1, precision: Precision = "exact", *, steps: int = 1) -> Layer:
    """The product of a weight, as schedules see it."""
    part = product.part_of(structure)
    s = structure.S if structure.kind == "doped" else sp.csr_array(part.shape, dtype="float32")
    return Layer(part=part, sparse=s, batch=batch, steps=steps, precision=precision)


def _choose(layer: Layer, target: Target, force: dict[str, Any] | None) -> tuple[Candidate, tuple[str, ...]]:
    allowed = None
    if force and force.get("format"):
        allowed = frozenset([force["format"]])
    elif force and force.get("structure") == "kept":
        allowed = frozenset(FORMATS)
    reasons: list[str] = []
    for name, choose in SCHEDULES.items():
        if allowed is not None and name == "fallback" and "csr" not in allowed:
            break
        answer = choose(layer, target, allowed)
        if isinstance(answer, Candidate):
            return answer, tuple(reasons)
        reasons.append(answer.reason)
    raise ScheduleError(
        f"the format {', '.join(sorted(allowed or ()))} for a {layer.rows} x {layer.columns} weight on {target.name}",
        "a schedule that accepts it",
        "; ".join(reasons),
        "Choose another format, or leave the choice to the schedules.",
    )


def _product(layer: Layer, chosen: Candidate, shared: bool = False) -> Product:
    dense, params = chosen.format == DENSE, dict(chosen.params)
    if shared and chosen.format == "sell16":
        params["window"] = window(layer.rows)
    return Product(
        part=Part(kind="dense", shape=layer.part.shape) if dense else layer.part,
        sparse=None if dense else chosen.format,
        nnz=0 if dense else int(layer.sparse.nnz),
        params=params,
        values=chosen.values,
        dot=chosen.dot,
        alternatives=chosen.alternatives,
    )
