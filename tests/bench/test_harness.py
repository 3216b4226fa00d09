"""A whole benchmark on a small doped model, and the demo built on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("matplotlib")

import torch

import tvm_doping
from tvm_doping import bench, checkpoint, models
from tvm_doping.bench import demo
from tvm_doping.errors import BenchError, BundleError
from tvm_doping.models.loading import model_tensors
from tvm_doping.models.tasks.language_model import LanguageModel

pytestmark = [pytest.mark.bench, pytest.mark.slow]

SIZES: dict[str, Any] = {"vocab": 60, "embedding": 48, "hidden": 64, "layers": 2}


def doped(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = LanguageModel(**SIZES)
    models.dope(model, compression=5, modules=["lstm"], seed=seed)
    return model.eval()


def save_run(folder: Path, model: torch.nn.Module, **metrics: float) -> Path:
    config = {"task": "language_model", "recipe": "toy", "model": SIZES, "metrics": metrics}
    checkpoint.save(folder, config, *model_tensors(model))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run"), doped(), test_perplexity=9.5, dense_test_perplexity=8.5)


@pytest.fixture(scope="module")
def results(run: Path) -> dict[str, Any]:
    baselines = ("onnxruntime", "onnxruntime-int8", "tvm-dense", "gemv-floor")
    return bench.run(run, steps=(1, 6), baselines=baselines, seconds=0.4)


def test_there_is_a_cell_for_each_scope_and_t_and_ours_comes_first(results: dict[str, Any]) -> None:
    cells = [(cell["scope"], cell["steps"]) for cell in results["cells"]]
    assert cells == [("lstm", 1), ("lstm", 6), ("model", 1), ("model", 6)]
    names = ["tvm_doping", "onnxruntime", "onnxruntime-int8", "tvm-dense", "gemv-floor"]
    assert all([engine["name"] for engine in cell["engines"]] == names for cell in results["cells"])


def test_every_sample_is_kept_and_summarised(results: dict[str, Any]) -> None:
    for cell in results["cells"]:
        for engine in cell["engines"]:
            assert len(engine["samples_us"]) == engine["us"]["samples"] >= 7
            assert engine["us"]["median"] == pytest.approx(np.median(engine["samples_us"]), abs=0.01)
            assert ("tokens_per_second" in engine) == (cell["scope"] == "model")
            if cell["scope"] == "model":
                assert engine["tokens_per_second"] * engine["us"]["median"] == pytest.approx(
                    1e6 * cell["steps"]
                )


def test_fp32_engines_agree_with_pytorch_and_int8_says_by_how_much_it_does_not(
    results: dict[str, Any],
) -> None:
    for cell in results["cells"]:
        errors = {engine["name"]: engine["error"] for engine in cell["engines"]}
        assert max(errors["tvm_doping"], errors["onnxruntime"], errors["tvm-dense"]) < 1e-5
        assert 1e-5 < errors["onnxruntime-int8"] < 0.5
        assert errors["gemv-floor"] is None


def test_results_are_json_and_carry_sizes_perplexities_and_machine(results: dict[str, Any]) -> None:
    assert json.loads(json.dumps(results)) == results
    assert results["model"]["name"] == "toy"
    assert results["model"]["metrics"] == {"test_perplexity": 9.5, "dense_test_perplexity": 8.5}
    assert results["model"]["lstm_weights"] == 4 * 64 * (48 + 64) + 4 * 64 * (64 + 64)
    assert results["model"]["lstm"]["compression"]["by_parameters"] > 3
    assert len(results["machine"]["cores_used"]) == 1


def test_a_bare_lstm_is_timed_alone() -> None:
    lstm = torch.nn.LSTM(48, 32)
    models.dope(lstm, compression=4)
    results = bench.run(lstm, steps=[2], baselines=["torch"], seconds=0.1)
    assert [cell["scope"] for cell in results["cells"]] == ["lstm"]


def test_the_bundle_of_another_model_is_found_out(run: Path, tmp_path: Path) -> None:
    tvm_doping.compile(doped(seed=1)).save(tmp_path / "other")
    with pytest.raises(BenchError, match=r"tvm_doping.*PyTorch"):
        bench.run(run, bundle=tmp_path / "other", scopes=["model"], steps=[1], baselines=[], seconds=0.1)


def test_a_bundle_for_a_model_is_refused_with_the_reason(run: Path, tmp_path: Path) -> None:
    tvm_doping.compile(run).save(tmp_path / "bundle")
    with pytest.raises(BenchError, match="dense weights"):
        bench.run(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("batch", 0),
        ("steps", ()),
        ("steps", (0,)),
        ("seconds", 0.0),
        ("scopes", ("all",)),
        ("baselines", ("cudnn",)),
    ],
)
def test_an_impossible_argument_is_named(argument: str, value: Any) -> None:
    with pytest.raises(BenchError, match=argument):
        bench.run("nowhere", **{argument: value})


def test_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(recipe: str, *, out: Path, resume: bool, dense: Path | None = None) -> dict[str, float]:
        metrics = (
            {"test_perplexity": 9.0}
            if dense is None
            else {"test_perplexity": 9.5, "dense_test_perplexity": 9.0}
        )
        save_run(out, doped(), **metrics)
        return metrics

    monkeypatch.setattr("tvm_doping.models.train.train", train)
    assert (
        demo.main(["--out", str(tmp_path / "out"), "--seconds", "0.4", "--baseline", "onnxruntime-int8"]) == 0
    )
    printed = capsys.readouterr().out
    for text in (
        "dense 9.0, doped 9.5",
        "Detected target",
        "onnxruntime-int8",
        "lstm.png",
        str(tmp_path / "out" / "bundle"),
    ):
        assert text in printed
    assert (tmp_path / "out" / "lstm.png").is_file()
    tvm_doping.load(tmp_path / "out" / "bundle", verify=True).close()


def test_the_demo_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--out", str(tmp_path), "--recipe", "no-such-recipe"]) == 1
    assert "no-such-recipe" in capsys.readouterr().out


def test_a_bundle_that_does_not_fit_is_refused_before_anything_is_timed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lstm = tvm_doping.compile(torch.nn.LSTM(48, 64))
    monkeypatch.setattr("tvm_doping.build.compile", lambda *_args, **_options: pytest.fail("it started"))
    with pytest.raises(BundleError, match=r"bundle\.json"):
        bench.run(run, bundle=tmp_path / "none")
    with pytest.raises(
        BenchError, match="tokens below 60 and 60 outputs; got one input of 48 numbers and 64"
    ):
        bench.run(run, bundle=lstm)
