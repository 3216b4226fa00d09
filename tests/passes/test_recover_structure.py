"""Structure is recognised from expressions and from dense values, and never invented."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from tests.frontend.running import check
from tests.passes.models import doped, plain
from tvm_doping._tvm import array_of, bindings, dps_call, text_of
from tvm_doping.frontend import import_model
from tvm_doping.models import dope, extract, undope
from tvm_doping.passes import Context
from tvm_doping.passes.match_linear import MatchLinear
from tvm_doping.passes.recover_structure import RecoverStructure
from tvm_doping.passes.reference import structure_of
from tvm_doping.structures import Dense, Doped, Structure
from tvm_doping.targets import resolve


def recovered(model: nn.Module, example: Any = None) -> list[Structure]:
    """The structures of all weights, in order; the module after the pass still computes what PyTorch does."""
    imported = import_model(model, example)
    context = Context(target=resolve("x86-64-v2"), names=imported.names)
    mod = RecoverStructure(context)(MatchLinear(context)(imported.mod))
    check(imported, mod, context, ((3, 2),))
    found = (dps_call(getattr(b, "value", None)) for b in bindings(mod["main"]))
    weights = [c[1] for c in found if c and c[0] == "doping.weight"]
    return [structure_of(text_of(w[0]), [array_of(a) for a in w[1:]]) for w in weights]


@pytest.mark.parametrize("structure", ["kronecker", "low_rank", "hybrid", "zero"])
def test_from_expressions(structure: str) -> None:
    model = doped(structure)
    wanted = extract(model)
    found = recovered(model)
    assert len(found) == len(wanted) == 3
    for name, weight in zip(("rnn.weight_ih_l0", "rnn.weight_hh_l0", "output.weight"), found, strict=True):
        assert isinstance(weight, Doped)
        assert weight.base.kind == structure
        assert weight.parameters == wanted[name].parameters
        for array, other in zip(weight.arrays().values(), wanted[name].arrays().values(), strict=True):
            np.testing.assert_array_equal(array, other)


def test_from_dense_values() -> None:
    """A doped model folded to dense weights is found again, with as many parameters."""
    torch.manual_seed(0)
    model = nn.LSTM(32, 32)
    dope(model, compression=4)
    wanted = extract(model)
    undope(model)
    found = recovered(model)
    for weight, name in zip(found, ("weight_ih_l0", "weight_hh_l0"), strict=True):
        assert isinstance(weight, Doped)
        assert weight.base.kind == "kronecker"
        assert weight.parameters <= 1.05 * wanted[name].parameters


def test_a_pruned_value() -> None:
    torch.manual_seed(0)
    model = nn.Linear(40, 40)
    with torch.no_grad():
        model.weight.mul_(torch.rand(40, 40) < 0.1)
    (weight,) = recovered(model)
    assert isinstance(weight, Doped)
    assert weight.base.kind == "zero"
    assert weight.S.nnz == int((model.weight != 0).sum())


def test_random_weights_stay_dense() -> None:
    assert [type(w) for w in recovered(plain(hidden=40))] == [Dense, Dense, Dense]


def test_small_weights_are_not_searched() -> None:
    model = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.kron(torch.randn(2, 4), torch.randn(4, 2)))
    assert [type(w) for w in recovered(model)] == [Dense]


class Scaled(nn.Module):
    """A parametrization that is no structure: it must be computed."""

    def forward(self, W: torch.Tensor) -> torch.Tensor:
        return torch.tanh(W) / W.norm()


class Sum(nn.Module):
    """kron(B, C) + S in the other order, S without a mask, and a difference that is no sum."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.B, self.C, self.sign = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(2, 4)), sign

    def forward(self, S: torch.Tensor) -> torch.Tensor:
        kron = torch.kron(self.B, self.C)
        return S + kron if self.sign > 0 else S - kron


def test_other_parametrizations_are_computed() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    parametrize.register_parametrization(model, "weight", Scaled())
    (weight,) = recovered(model)
    assert isinstance(weight, Dense)
    np.testing.assert_allclose(weight.to_dense(), model.weight.detach().numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_sums_and_differences(sign: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    with torch.no_grad():
        model.weight.mul_(torch.rand(8, 8) < 0.1)
    parametrize.register_parametrization(model, "weight", Sum(sign))
    (weight,) = recovered(model)
    np.testing.assert_allclose(weight.to_dense(), model.weight.detach().numpy(), rtol=0, atol=1e-6)
    assert weight.kind == ("doped" if sign > 0 else "dense")


def test_an_s_that_is_not_sparse_is_no_structure() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    parametrize.register_parametrization(model, "weight", Sum(1.0))
    assert [type(w) for w in recovered(model)] == [Dense]


def test_a_weight_used_twice_is_held_once() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(40, 40)
    imported = import_model(nn.Sequential(linear, nn.Tanh(), linear))
    context = Context(target=resolve("x86-64-v2"), names=imported.names)
    mod = RecoverStructure(context)(MatchLinear(context)(imported.mod))
    found = (dps_call(getattr(b, "value", None)) for b in bindings(mod["main"]))
    first, second = (c[1][1] for c in found if c and c[0] == "doping.weight")
    assert first.value.same_as(second.value)


def test_what_is_recorded_names_its_arrays() -> None:
    imported = import_model(doped())
    context = Context(target=resolve("x86-64-v2"), names=imported.names)
    mod = RecoverStructure(context)(MatchLinear(context)(imported.mod))
    found = (dps_call(getattr(b, "value", None)) for b in bindings(mod["main"]))
    spec = next(json.loads(text_of(c[1][0])) for c in found if c and c[0] == "doping.weight")
    assert spec["kind"] == "doped"
    assert spec["base"] == "kronecker"
    assert spec["arrays"] == ["base.B", "base.C", "S.indptr", "S.indices", "S.values"]
