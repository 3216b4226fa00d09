"""The smaller dense rival: its parameters, counted by PyTorch, are those of the doped model, and one unit more has more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tvm_doping.errors import InvalidInput
from tvm_doping.models import LanguageModel, dope, extract
from tvm_doping.models.rivals import smaller_hidden

BUILDS: dict[str, Callable[[int], nn.Module]] = {
    "language model": lambda h: LanguageModel(50, 40, h, 2),
    "tied": lambda h: LanguageModel(50, h, h, 2, tied=True),
    "bidirectional": lambda h: nn.LSTM(24, h, bidirectional=True),
}


def counted(model: nn.Module, only: str) -> int:
    """Parameters after doping: those of the structures, and of all that stayed."""
    whole = model.get_submodule(only) if only else model
    doped = {name: value for name, value in extract(model).items() if name.startswith(only)}
    dense = {id(p): p.numel() for name, p in whole.named_parameters() if "parametrizations" not in name}
    return sum(value.parameters for value in doped.values()) + sum(dense.values())


@pytest.mark.parametrize(
    ("name", "compression", "count", "hidden"),
    [
        ("language model", 3.7, "doped", 48),
        ("language model", 9, "all", 24),
        ("tied", 5, "doped", 24),
        ("tied", 5, "all", 32),
        ("bidirectional", 4, "doped", 24),
        ("bidirectional", 7.5, "all", 48),
    ],
)
def test_the_rival_has_as_many_parameters(name: str, compression: float, count: Any, hidden: int) -> None:
    build = BUILDS[name]
    modules = None if name == "bidirectional" else "lstm"
    rival = smaller_hidden(build, hidden, compression=compression, modules=modules, count=count)
    only = "lstm" if count == "doped" and modules else ""
    budget = counted(dope(build(hidden), modules=modules, compression=compression), only)
    assert counted(build(rival), only) <= budget < counted(build(rival + 1), only)


def test_figures_of_the_papers_model() -> None:
    def build(h: int) -> nn.Module:
        return LanguageModel(10_000, 200, h, 2)

    # 2 x 200 at 20x: 4 weights of 160,000 / 20, and 3,200 biases; 4h (200 + h) + 8h^2 + 16h <= 35,200
    assert smaller_hidden(build, 200, compression=20, modules="lstm") == 29
    # with the output layer counted, each unit costs 10,000 more
    assert smaller_hidden(build, 200, compression=20, modules="lstm", count="all") == 159


def test_no_memory_is_taken() -> None:
    sizes = []

    def build(h: int) -> nn.Module:
        model = nn.LSTM(1500, h, 2)
        sizes.append(next(model.parameters()).device)
        return model

    smaller_hidden(build, 1500, compression=20)
    assert set(sizes) == {torch.device("meta")}


def test_a_multiple() -> None:
    sizes = [
        smaller_hidden(lambda h: nn.LSTM(24, h), 24, compression=2, multiple=multiple)
        for multiple in (1, 2, 8)
    ]
    assert sizes[0] == 15 and sizes[1:] == [14, 8]


def test_what_has_no_rival() -> None:
    with pytest.raises(InvalidInput, match="hidden size 1"):
        smaller_hidden(lambda h: nn.LSTM(64, h, bias=False), 4, compression=20)
    with pytest.raises(InvalidInput, match="count"):
        smaller_hidden(nn.Identity, 4, compression=20, count="some")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="multiple 5"):
        smaller_hidden(lambda h: nn.LSTM(64, h), 4, compression=2, multiple=5)
    with pytest.raises(InvalidInput, match="none of them"):
        smaller_hidden(lambda h: nn.GRU(4, h), 4, compression=20)
