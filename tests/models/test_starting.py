"""train.start: a doped run begins with the weights of a dense one, and says why another folder does not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.conftest import fields
from tvm_doping import checkpoint
from tvm_doping.errors import CheckpointError
from tvm_doping.models import LanguageModel, Recipe, doped_weights, load_model
from tvm_doping.models.doping import original
from tvm_doping.models.loop import Run
from tvm_doping.models.starting import start_from
from tvm_doping.models.train import train


@pytest.fixture(scope="module")
def dense(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dense")
    train(Recipe.model_validate({**fields(epochs=2), "doping": None}), texts, out, progress=False)
    return out


def started(dense: Path, **train: Any) -> dict[str, Any]:
    settings = fields(start=str(dense), **train)
    settings["doping"] = {**settings["doping"], "init": "nearest"}
    return settings


def test_s_is_the_residual_of_the_dense_weights(
    dense: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, Any] = {}
    real = Run.all

    def looking(self: Run, rival: float | None) -> dict[str, Any]:
        # annealing has opened the masks: S is all that the structured part leaves
        begun.update({path: getattr(m, n).detach().clone() for path, m, n, _ in doped_weights(self.bare)})
        begun["S"] = [original(m, n).abs().max() for _, m, n, _ in doped_weights(self.bare)]
        return real(self, rival)

    monkeypatch.setattr(Run, "all", looking)
    settings = started(dense, epochs=1)
    settings["doping"]["cmr"] = {}
    metrics = train(Recipe.model_validate(settings), texts, tmp_path, progress=False)
    assert min(begun.pop("S")) > 0
    for name, value in begun.items():
        torch.testing.assert_close(value, load_model(dense).state_dict()[name], rtol=0, atol=1e-6)
    fresh = train(Recipe.model_validate(fields(epochs=1)), texts, tmp_path / "fresh", progress=False)
    assert metrics["test_perplexity"] < fresh["test_perplexity"]


def test_a_stopped_run_resumes_without_the_dense_one(texts: Path, tmp_path: Path, dense: Path) -> None:
    (tmp_path / "dense").symlink_to(dense)
    recipe = Recipe.model_validate(started(tmp_path / "dense", epochs=1))
    before = train(recipe, texts, tmp_path / "run", progress=False)
    (tmp_path / "dense").unlink()
    assert train(recipe, texts, tmp_path / "run", progress=False) == before


def test_what_does_not_fit_is_named(dense: Path, texts: Path, tmp_path: Path) -> None:
    def refused(settings: dict[str, Any], word: str) -> None:
        with pytest.raises(CheckpointError, match=word):
            train(Recipe.model_validate(settings), texts, tmp_path / "x", progress=False)

    larger = started(dense)
    larger["model"] = {**larger["model"], "hidden": 20}
    refused(larger, r"lstm\.weight_ih_l0 \(64, 12\), here \(80, 12\)")
    deeper = started(dense)
    deeper["model"] = {**deeper["model"], "layers": 3}
    refused(deeper, r"lstm\.weight_ih_l2 absent, here \(64, 16\)")
    refused(started(tmp_path / "absent"), "none")
    train(Recipe.model_validate(fields(epochs=1)), texts, tmp_path / "doped", progress=False)
    refused(started(tmp_path / "doped"), "a doped one")
    model = LanguageModel(**checkpoint.read_config(dense)["model"])
    with pytest.raises(CheckpointError, match="vocabulary"):
        start_from(dense, model, "language_model", {"tokens": "words", "vocabulary": ["other"]})
    with pytest.raises(CheckpointError, match="a run of speech"):
        start_from(dense, model, "speech", {})
