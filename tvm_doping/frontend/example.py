"""Inputs to export a model with, where the user gives none."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from tvm_doping.errors import InvalidInput
from tvm_doping.frontend.swap import describe

# Sizes that are no model's own, and differ: 7 time steps of 3 streams.
STEPS, STREAMS = 7, 3
_SEED = 0
_STATES = ("state", "hx", "hidden", "hidden_state")


def example_of(model: nn.Module) -> tuple[tuple[Any, ...], list[set[int]] | None]:
    """Random inputs guessed from the first layer, and the axes of each that are time or batch.

    A model with a method `example_inputs()` says them itself, as a tuple; the axes are what its `example_axes()` says, one set for
    each tensor, or without that are found (None).
    An nn.Embedding takes indices (T, N), an nn.LSTM floats (T, N, I) or batch first, an nn.Linear (N, I). A forward whose second
    argument is called state or hx, of a model with a single nn.LSTM, gets its (h, c). InvalidInput where no guess can be made.
    """
    own: Any = getattr(model, "example_inputs", None)
    if own is not None:
        varying: Any = getattr(model, "example_axes", None)
        return tuple(own()), None if varying is None else varying()
    torch_random = torch.Generator().manual_seed(_SEED)
    leaves = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.LSTM | nn.Linear)]
    lstms = [m for m in model.modules() if isinstance(m, nn.LSTM)]
    names = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.kind != parameter.VAR_KEYWORD
    ]
    required = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    stateful = len(names) > 1 and names[1] in _STATES and len(lstms) == 1 and model is not lstms[0]
    if not leaves or len(required) > (2 if stateful else 1):
        raise InvalidInput(
            "example", f"inputs to trace {describe('', model)} with", "none", "Pass example=(inputs, ...)."
        )
    x = _input(leaves[0], lstms, torch_random)
    axes = set(range(2 if lstms or isinstance(leaves[0], nn.Embedding) else 1))
    if not stateful:
        return (x,), [axes]
    lstm = lstms[0]
    shape = (lstm.num_layers * (2 if lstm.bidirectional else 1), STREAMS, lstm.hidden_size)
    return (x, tuple(torch.randn(shape, generator=torch_random) * 0.5 for _ in range(2))), [axes, {1}, {1}]


def _input(first: nn.Module, lstms: list[nn.LSTM], random: torch.Generator) -> Tensor:
    sizes = [STEPS, STREAMS]
    if lstms and lstms[0].batch_first:
        sizes.reverse()
    if isinstance(first, nn.Embedding):
        return torch.randint(first.num_embeddings, tuple(sizes), generator=random)
    if isinstance(first, nn.LSTM):
        return torch.randn((*sizes, first.input_size), generator=random)
    assert isinstance(first, nn.Linear)
    return torch.randn((*(sizes if lstms else sizes[1:]), first.in_features), generator=random)
