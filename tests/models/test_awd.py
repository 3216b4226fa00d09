"""AWD-style regularisation: the plain model where nothing is dropped, what each option does, and nothing of it in evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.conftest import fields
from tvm_doping import checkpoint
from tvm_doping.models import LanguageModel, Recipe, dope, load_model
from tvm_doping.models.tasks import language_model as lm
from tvm_doping.models.tasks.awd import Awd, pop_penalty
from tvm_doping.models.train import train

TOKENS = torch.arange(24).reshape(8, 3) % 13


def model(dropout: float = 0.0, **awd: Any) -> LanguageModel:
    torch.manual_seed(1)
    return LanguageModel(13, 8, 8, 2, dropout=dropout, awd=awd)


def doped(**awd: Any) -> LanguageModel:
    return dope(model(**awd), compression=2, modules="lstm")


@pytest.mark.parametrize("make", [model, doped])
def test_without_any_rate_it_is_the_plain_model(make: Any) -> None:
    found = make().train()
    state = (torch.rand(2, 3, 8), torch.rand(2, 3, 8))
    for start in (None, state):
        y, new = found(TOKENS, start)
        wanted, end = found.eval()(TOKENS, start)
        torch.testing.assert_close(y, wanted)
        torch.testing.assert_close(torch.stack(new), torch.stack(end))
        found.train()
    assert pop_penalty(found) is None


@pytest.mark.parametrize("make", [model, doped])
def test_weight_drop_zeroes_entries_of_the_recurrent_weights_only(make: Any) -> None:
    found = make(weight_drop=0.999999).train()
    y, _ = found(TOKENS)
    for layer in range(2):
        name = f"weight_hh_l{layer}"
        if make is doped:  # assigning moves S alone: open all of it
            found.lstm.parametrizations[name][0].mask.fill_(True)
            setattr(found.lstm, name, torch.zeros(32, 8))
        else:
            getattr(found.lstm, name).data.zero_()
    torch.testing.assert_close(y, found.eval()(TOKENS)[0])


def test_a_dropped_word_is_dropped_wherever_it_stands() -> None:
    found = model(embedding_dropout=0.5).train()
    x = torch.full((6, 2), 4)
    torch.nn.init.normal_(found.lstm.all_weights[0][0])
    outcomes = {round(float(found(x)[1][0][0].detach().abs().sum()), 4) for _ in range(30)}
    assert len(outcomes) == 2  # all of a word's places, or none


def test_locked_dropout_has_one_mask_for_all_steps() -> None:
    y, _ = Awd(locked=True)(model(0.5).train(), TOKENS, None)
    dropped = (y == 0).any(0)
    assert torch.equal(dropped, (y == 0).all(0)) and dropped.any() and not dropped.all()
    y, _ = Awd(locked=False)(model(0.5).train(), TOKENS, None)
    assert not torch.equal((y == 0).any(0), (y == 0).all(0))


def test_the_penalty_is_added_to_the_loss_and_not_reported() -> None:
    task = lm.LanguageModelling()
    found = model(alpha=2.0, beta=3.0).train()
    y, _ = Awd()(found, TOKENS[:-1], None)
    loss = task.loss(found, (TOKENS[:-1], TOKENS[1:]), None)
    plain = task.loss(model().train(), (TOKENS[:-1], TOKENS[1:]), None)
    penalty = 7 * (2 * y.pow(2).mean() + 3 * (y[1:] - y[:-1]).pow(2).mean())
    torch.testing.assert_close(loss.objective, plain.objective + penalty)
    torch.testing.assert_close(loss.total, plain.total)
    assert pop_penalty(found) is None


def test_a_run_with_all_of_it_is_a_plain_run_folder(texts: Path, tmp_path: Path) -> None:
    settings = fields(epochs=2)
    awd = {"weight_drop": 0.2, "embedding_dropout": 0.1, "alpha": 0.1, "beta": 0.1}
    settings["model"] = {**settings["model"], "awd": awd}
    metrics = train(Recipe.model_validate(settings), texts, tmp_path, progress=False)
    assert metrics["test_perplexity"] < 15  # a guess would give 21
    plain = fields(epochs=2)
    train(Recipe.model_validate(plain), texts, tmp_path / "plain", progress=False)
    assert set(checkpoint.load(tmp_path).tensors) == set(checkpoint.load(tmp_path / "plain").tensors)
    assert "awd" not in checkpoint.read_config(tmp_path / "plain")["model"]
    loaded = load_model(tmp_path)
    torch.testing.assert_close(loaded(TOKENS)[0], loaded(TOKENS)[0], rtol=0, atol=0)
