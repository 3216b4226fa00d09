"""The annealing of S: Zhu and Gupta's curve, the exact end, and masks that allow what the pattern allows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tvm_doping.errors import InvalidInput
from tvm_doping.models import Annealing, dope, doped_weights
from tvm_doping.models.anneal import schedule
from tvm_doping.models.doping import original


def weights(model: nn.Module) -> list[Any]:
    return [row[3] for row in doped_weights(model)]


def test_density_follows_the_cubic_and_ends_exact() -> None:
    model = dope(nn.LSTM(32, 24), compression=8)
    final = [weight.nonzeros for weight in weights(model)]
    annealing = Annealing(model, start=10, end=50, frequency=4)
    assert annealing.density == 1.0 and not annealing.finished
    for step in range(1, 61):
        annealing.step()
        for weight, least in zip(weights(model), final, strict=True):
            share = least / weight.mask.numel()
            at = 10 if step < 10 else 50 if step >= 50 else 10 + (step - 10) // 4 * 4
            left = (1 - (at - 10) / 40) ** 3
            assert int(weight.mask.sum()) == pytest.approx(
                (share + (1 - share) * left) * weight.mask.numel(), abs=1
            )
    assert annealing.finished and [int(weight.mask.sum()) for weight in weights(model)] == final


@given(a=st.floats(0, 100), b=st.floats(0, 100))
def test_the_schedule_never_rises(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 1.0 >= schedule(low, 20, 80) >= schedule(high, 20, 80) >= 0.0


@pytest.mark.parametrize("pattern", ["nm32", "block4", "block16"])
def test_patterns_hold_at_the_end(pattern: str) -> None:
    model = dope(nn.Linear(64, 48), compression=6, pattern=pattern)
    annealing = Annealing(model, start=0, end=4, frequency=1)
    for _ in range(4):
        annealing.step()
    (weight,) = weights(model)
    if pattern == "nm32":
        counts = weight.mask.reshape(48, 2, 32).sum(2)
        assert counts.min() == counts.max() > 0
    else:
        rows = int(pattern.removeprefix("block"))
        blocks = weight.mask.reshape(48 // rows, rows, 64)
        assert bool((blocks.any(1) == blocks.all(1)).all())


def test_the_largest_entries_stay() -> None:
    model = dope(nn.Linear(30, 40), structure="zero", compression=10)
    annealing = Annealing(model, start=0, end=1)
    annealing.step()
    ((_, module, name, weight),) = doped_weights(model)
    S = original(module, name).detach().abs()
    assert S[weight.mask].min() >= S[~weight.mask].max()


def test_global_scope_shares_the_budget_by_magnitude() -> None:
    model = dope(nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 30)), structure="zero", compression=10)
    total = sum(weight.nonzeros for weight in weights(model))
    ((_, module, name, _), _) = doped_weights(model)
    with torch.no_grad():
        original(module, name).mul_(3.0)
    annealing = Annealing(model, start=0, end=2, frequency=1, scope="global")
    annealing.step()
    annealing.step()
    first, second = (int(weight.mask.sum()) for weight in weights(model))
    assert first + second == total and first > 2 * second


def test_the_masks_stay_after_the_end() -> None:
    model = dope(nn.Linear(30, 40), compression=5)
    annealing = Annealing(model, start=0, end=3, frequency=1)
    for _ in range(3):
        annealing.step()
    ((_, module, name, weight),) = doped_weights(model)
    before = weight.mask.clone()
    with torch.no_grad():
        original(module, name).normal_()
    for _ in range(5):
        annealing.step()
    assert torch.equal(weight.mask, before)


@pytest.mark.parametrize(
    "arguments", [{"start": 5, "end": 4}, {"start": -1, "end": 4}, {"start": 0, "end": 4, "frequency": 0}]
)
def test_impossible_schedules(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="start"):
        Annealing(dope(nn.Linear(30, 40), compression=5), **arguments)


def test_global_scope_needs_unstructured() -> None:
    with pytest.raises(InvalidInput, match="block4"):
        Annealing(dope(nn.Linear(30, 40), compression=5, pattern="block4"), start=0, end=4, scope="global")
