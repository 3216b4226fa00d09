"""Linear layers are found in all their forms, and nothing else is taken for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.frontend.running import check
from tvm_doping._tvm import bindings, dps_call, text_of
from tvm_doping.frontend import import_model
from tvm_doping.passes import Context
from tvm_doping.passes.match_linear import MatchLinear
from tvm_doping.targets import resolve


class Applies(nn.Module):
    """A function of an input and a weight (5, 4)."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(5))
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.weight, self.bias)


TAKEN = {
    "linear": lambda x, w, b: functional.linear(x, w, b),
    "without bias": lambda x, w, b: functional.linear(x, w),
    "bias first": lambda x, w, b: b + x @ w.T,
    "not transposed": lambda x, w, b: x @ (2 * w.T.contiguous()),
    "an expression": lambda x, w, b: functional.linear(x, torch.kron(w[:1, :2], w[:5, :2]) + w, b + b),
    "sum used twice": lambda x, w, b: (y := functional.linear(x, w, b)) * torch.tanh(y),
    "product used twice": lambda x, w, b: (y := x @ w.T) + b * y,
    "a column added": lambda x, w, b: x @ w.T + x.sum(-1, keepdim=True),
}
LEFT = {
    "two inputs": lambda x, w, b: x @ x.transpose(-1, -2),
    "no product": lambda x, w, b: x * w[0],
}


def linears(mod: Any) -> list[str]:
    found = (dps_call(getattr(b, "value", None)) for b in bindings(mod["main"]))
    return [text_of(c[1][3]) for c in found if c and c[0] == "doping.linear"]


def matched(model: nn.Module, x: torch.Tensor) -> list[str]:
    imported = import_model(model, x)
    context = Context(target=resolve("x86-64-v2"), names=imported.names)
    mod = MatchLinear(context)(imported.mod)
    check(imported, mod, context, ((1, 3), (1, 1)))
    return linears(mod)


@pytest.mark.parametrize("function", TAKEN.values(), ids=TAKEN.keys())
@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4)], ids=str)
def test_taken(function: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    assert len(matched(Applies(function), torch.randn(shape))) == 1


@pytest.mark.parametrize("function", LEFT.values(), ids=LEFT.keys())
def test_left(function: Any) -> None:
    torch.manual_seed(0)
    assert matched(Applies(function), torch.randn(3, 2, 4)) == []


def test_a_single_vector() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(3, 4))

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.output = model[0], nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.output(self.rnn(x)[0][-1, 0])

    assert matched(Last(), torch.randn(4, 2, 3)) == ["output"]


def test_names() -> None:
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(4, 2, bias=False))
    assert matched(model, torch.randn(3, 4)) == ["0", "0.call2", "3"]


def test_a_large_and_a_small_value() -> None:
    """The bias is added, not lost: values whose sum shows it."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.copy_(torch.tensor([10.0, -10.0]))
    imported = import_model(model)
    wanted, _ = imported.reference({"input": np.zeros((1, 2), "float32")})
    np.testing.assert_array_equal(wanted["output"], [[10.0, -10.0]])
    assert matched(model, torch.randn(3, 2)) == ["linear"]
