"""The smaller dense model that a doped one has to beat: as many parameters, all of them dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn

from tvm_doping.errors import InvalidInput
from tvm_doping.models.doping import budget_of, chosen_weights


def smaller_hidden(
    build: Callable[[int], nn.Module],
    hidden: int,
    *,
    compression: float,
    modules: Sequence[str] | str | None = None,
    count: Literal["doped", "all"] = "doped",
    multiple: int = 1,
) -> int:
    """The largest hidden size whose dense model has no more parameters than the one of `hidden` doped with `compression`.

    build    makes the dense model of a hidden size (no memory is taken for it), smaller for a smaller one;
    modules  what is doped, as `dope()` takes it; each of its weights then counts m*n / compression, rounded down as there;
    count    "doped": the modules that hold a doped weight, biases included, are of one size, and what is left as it was (of a
             language model the embedding and the output layer) may be smaller in the rival, whose output layer reads fewer
             hidden units; "all": whole models are of one size, so that the rival gets what it saves there;
    multiple the hidden size is a multiple of it.

    Raises InvalidInput where even one hidden unit has more parameters.
    """
    if count not in ("doped", "all"):
        raise InvalidInput("count", "doped or all", repr(count), "Choose one of these names.")
    if not 1 <= multiple <= hidden:
        got = f"hidden {hidden}, multiple {multiple}"
        raise InvalidInput("hidden", "at least multiple, and that at least 1", got, "Pass the doped model's.")
    budget = _parameters(build, hidden, compression, modules, count)

    def fits(h: int) -> bool:
        return _parameters(build, h, 1.0, modules, count) <= budget

    if not fits(multiple):
        raise InvalidInput(
            f"a dense model of {budget} parameters",
            f"at least {_parameters(build, multiple, 1.0, modules, count)}, those of a model of hidden size {multiple}",
            f"compression {compression:g}",
            "Lower compression.",
        )
    low, high = 1, hidden // multiple + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * multiple) else (low, middle)
    return low * multiple


def _parameters(
    build: Callable[[int], nn.Module],
    hidden: int,
    compression: float,
    modules: Sequence[str] | str | None,
    count: str,
) -> int:
    """Parameters, a tied one once, of the model of a hidden size, or of its doped modules, with that compression."""
    with torch.device("meta"):
        model = build(hidden)
    rows = chosen_weights(model, modules)
    doped = {id(getattr(module, name)) for _, module, name in rows}
    holders: list[nn.Module] = [model] if count == "all" else [module for _, module, _ in rows]
    counted = {id(parameter): parameter for holder in holders for parameter in holder.parameters()}
    return sum(
        budget_of(parameter.numel(), compression) if key in doped else parameter.numel()
        for key, parameter in counted.items()
    )
