"""What is said of a model before it is compiled."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tvm_doping import checkpoint
from tvm_doping.errors import InvalidInput, UnfinishedWarning
from tvm_doping.models import (
    Annealing,
    LanguageModel,
    close_masks,
    dope,
    doped_weights,
    load_model,
    model_tensors,
)
from tvm_doping.models.checks import check_model

SIZES: dict[str, Any] = {"vocab": 9, "embedding": 32, "hidden": 32, "layers": 2}


def silent(model: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_model(model)


@pytest.mark.parametrize("pattern", ["unstructured", "nm32", "block16"])
def test_an_unfinished_annealing_is_warned_of(pattern: str) -> None:
    model = dope(LanguageModel(**SIZES), compression=8, pattern=pattern, modules="lstm")
    silent(model)
    annealing = Annealing(model, start=0, end=9)
    with pytest.warns(UnfinishedWarning, match=r"lstm.weight_ih_l0 \(100.0% nonzero, .*close_masks"):
        check_model(model)
    for _ in range(9):
        annealing.step()
    silent(model)


def test_weights_that_share_one_budget_are_finished() -> None:
    model = dope(nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 30)), structure="zero", compression=10)
    with torch.no_grad():
        next(model.parameters()).mul_(3.0)
    annealing = Annealing(model, start=0, end=1, scope="global")
    annealing.step()
    assert len({int(weight.mask.sum()) for _, _, _, weight in doped_weights(model)}) == 2
    silent(model)


def test_a_run_folder_knows_what_was_planned(tmp_path: Path) -> None:
    doping: dict[str, Any] = {"compression": 8, "pattern": "nm32"}
    model = dope(LanguageModel(**SIZES), modules="lstm", **doping)
    Annealing(model, start=0, end=9)
    config = {"task": "language_model", "model": SIZES, "doping": doping}
    loaded = load_model(checkpoint.save(tmp_path, config, *model_tensors(model)))
    with pytest.warns(UnfinishedWarning, match=r"lstm.weight_hh_l1 \(.*close_masks"):
        check_model(loaded)
    close_masks(loaded)
    silent(loaded)
    assert (
        checkpoint.load(checkpoint.save(tmp_path, config, *model_tensors(loaded))).config["compression"][
            "by_parameters"
        ]
        > 6
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    last = nn.Linear(4, 2)
    model = nn.Sequential(nn.Linear(3, 4), last)
    with torch.no_grad():
        last.weight[1, 2] = value
    with pytest.raises(InvalidInput, match=r"weight 1\.weight: .*1 of 8 entries"):
        check_model(model)
