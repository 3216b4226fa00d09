"""Exchanging entries of S after annealing: the smallest go, those of the largest gradients come, and nothing else changes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.conftest import fields, stop
from tvm_doping import checkpoint
from tvm_doping.errors import InvalidInput, RecipeError
from tvm_doping.models import Annealing, Recipe, dope, doped_weights, load_recipe
from tvm_doping.models.doping import original
from tvm_doping.models.train import train


def trained(steps: int, *, look: bool = True, pattern: str = "unstructured", **arguments: Any) -> Any:
    """(weight, S, annealing) after so many steps of SGD; annealing ends at step 2 and exchanges at 4, 6 and 8."""
    torch.manual_seed(0)
    model = dope(nn.Linear(64, 48), compression=8, pattern=pattern)
    ((_, module, name, weight),) = doped_weights(model)
    annealing = Annealing(model, start=0, end=2, frequency=2, regrow=0.5, regrow_end=10, **arguments)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    x, wanted = torch.randn(100, 64), torch.randn(100, 48)
    for _ in range(steps):
        optimiser.zero_grad()
        (model(x) - wanted).square().mean().backward()
        if look:
            annealing.look()
        optimiser.step()
        annealing.step()
    return weight, original(module, name).detach(), annealing, model


def test_the_smallest_go_and_the_largest_gradients_come() -> None:
    before, *_ = trained(3)
    after, new, *_ = trained(4)
    count = int(before.mask.sum())
    assert int(after.mask.sum()) == count == before.nonzeros
    opened, closed = after.mask & ~before.mask, before.mask & ~after.mask
    # at a quarter of the way: 0.5 / 2 (1 + cos(pi / 4)) of the entries are given up, of which some come back
    given = count - round(count * (1 - 0.25 * (1 + 0.5**0.5)))
    assert 0 < int(opened.sum()) == int(closed.sum()) <= given
    assert not new[opened].any() and new[after.mask & before.mask].all()
    kept = after.mask & before.mask
    assert new[closed].abs().max() <= new[kept].abs().median()
    # the gradient of the dense weight, as autograd gives it where no entry is closed
    *_, model = trained(3)
    ((_, module, name, weight),) = doped_weights(model)
    assert isinstance(module, nn.Linear)
    value = getattr(module, name).detach().requires_grad_()
    torch.manual_seed(0)
    dope(nn.Linear(64, 48), compression=8)
    x, wanted = torch.randn(100, 64), torch.randn(100, 48)
    (nn.functional.linear(x, value, module.bias) - wanted).square().mean().backward()
    gradient = value.grad.abs()
    assert gradient[opened].min() >= gradient[~weight.mask & ~opened].max()


def test_the_step_of_the_optimiser_is_what_it_always_was() -> None:
    """All but the exchange itself: factors, and the entries that were open before."""
    weight, S, *_ = trained(4)
    torch.manual_seed(0)
    model = dope(nn.Linear(64, 48), compression=8)
    ((_, module, name, found),) = doped_weights(model)
    plain: Any = found
    annealing, optimiser = (
        Annealing(model, start=0, end=2, frequency=2),
        torch.optim.SGD(model.parameters(), lr=0.01),
    )
    x, wanted = torch.randn(100, 64), torch.randn(100, 48)
    for _ in range(4):
        optimiser.zero_grad()
        (model(x) - wanted).square().mean().backward()
        optimiser.step()
        annealing.step()
    assert torch.equal(weight.B, plain.B) and torch.equal(weight.C, plain.C)
    stayed = weight.mask & plain.mask
    assert torch.equal(S[stayed], original(module, name).detach()[stayed])
    never = ~weight.mask & ~plain.mask
    assert torch.equal(S[never], original(module, name).detach()[never])


def test_it_ends() -> None:
    masks = [trained(steps)[0].mask for steps in (3, 4, 5, 8, 9, 10, 14)]
    changed = [not torch.equal(a, b) for a, b in pairwise(masks)]
    assert changed == [True, False, True, False, False, False]
    weight, _, annealing, _ = trained(14)
    assert annealing.finished and not weight.dense_gradient


@pytest.mark.parametrize("pattern", ["nm32", "block4", "block16"])
def test_patterns_hold(pattern: str) -> None:
    (before, *_), (after, *_) = trained(3, pattern=pattern), trained(9, pattern=pattern)
    assert not torch.equal(before.mask, after.mask) and before.mask.sum() == after.mask.sum()
    if pattern == "nm32":
        counts = after.mask.reshape(48, 2, 32).sum(2)
        assert counts.min() == counts.max() > 0
    else:
        blocks = after.mask.reshape(-1, int(pattern.removeprefix("block")), 64)
        assert torch.equal(blocks.any(1), blocks.all(1))


def test_one_ranking_over_all_keeps_each_weights_number() -> None:
    (before, *_), (after, *_) = trained(3, scope="global"), trained(9, scope="global")
    assert not torch.equal(before.mask, after.mask) and before.mask.sum() == after.mask.sum()


def test_what_is_impossible_is_said() -> None:
    with pytest.raises(InvalidInput, match=r"look\(\)"):
        trained(4, look=False)
    model = dope(nn.Linear(64, 48), compression=8)
    with pytest.raises(InvalidInput, match="regrow_end >= end"):
        Annealing(model, start=0, end=4, regrow=0.3, regrow_end=3)
    with pytest.raises(RecipeError, match=r"regrow_end.*at least anneal\.end, 0\.5"):
        load_recipe("lm-tiny", {"doping.anneal.regrow": 0.3, "doping.anneal.regrow_end": 0.4})


@pytest.mark.parametrize("at", [60, 75])
def test_a_stopped_run_goes_on_to_the_bit(texts: Path, tmp_path: Path, at: int) -> None:
    settings = fields(epochs=3, accumulate=2)
    settings["doping"]["anneal"] |= {"end": 0.3, "regrow": 0.4, "regrow_end": 0.9, "frequency": 2}
    recipe = Recipe.model_validate(settings)
    train(recipe, texts, tmp_path / "whole", progress=False)
    stop(lambda: train(recipe, texts, tmp_path / "cut", progress=False), at)
    train(recipe, texts, tmp_path / "cut", progress=False)
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert checkpoint.read_config(tmp_path / "whole")["compression"]["by_parameters"] == pytest.approx(
        4, rel=0.02
    )
