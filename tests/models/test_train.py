"""Training: it learns, keeps its promises about S, survives a kill to the bit, and says what is wrong."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.models.conftest import fields, stop
from tvm_doping import checkpoint
from tvm_doping.errors import CheckpointError, DataError, DopingError, RecipeError
from tvm_doping.models import LanguageModel, Recipe, doped_weights, load_model, load_recipe, read_metrics
from tvm_doping.models.loop import TrainingError
from tvm_doping.models.metrics import MetricsLog
from tvm_doping.models.tasks import language_model as lm
from tvm_doping.models.tasks.text import ptb
from tvm_doping.models.train import train


@pytest.fixture(scope="module")
def run(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train(Recipe.model_validate(fields()), texts, out, progress=False)
    return out


def test_it_learns_and_tests_the_best(run: Path, texts: Path) -> None:
    metrics = checkpoint.read_config(run)["metrics"]
    epochs = [row["valid_perplexity"] for row in read_metrics(run) if row["event"] == "epoch"]
    assert len(epochs) == 3 == metrics["epochs_done"] and epochs[-1] < 12 < epochs[0] < 25
    assert metrics["finished"] and metrics["annealed"]
    corpus, model = ptb(texts), load_model(run)
    data = lm.columns(corpus.test, 1, "test")
    assert lm.perplexity(model, data, steps=7) == pytest.approx(metrics["test_perplexity"], rel=1e-4)
    logits, _ = model(data[:-1])
    direct = math.exp(float(functional.cross_entropy(logits.flatten(0, 1), data[1:].flatten()).detach()))
    assert direct == pytest.approx(metrics["test_perplexity"], rel=1e-4)


def test_the_checkpoint_is_as_sparse_as_promised(run: Path) -> None:
    found = checkpoint.load(run)
    assert sorted(found.structures) == [f"lstm.weight_{x}h_l{layer}" for x in "hi" for layer in "01"]
    for doped in found.structures.values():
        assert doped.parameters == doped.shape[0] * doped.shape[1] // 4
    assert found.config["compression"]["by_parameters"] == pytest.approx(4, rel=0.01)
    assert not any("weight" in name and "lstm" in name for name in found.tensors)


def test_the_loaded_model_is_doped_and_in_evaluation(run: Path) -> None:
    model = load_model(run)
    assert not model.training and len(list(doped_weights(model))) == 4
    tokens = torch.randint(10, (6, 2))
    torch.testing.assert_close(model(tokens)[0], model(tokens)[0], rtol=0, atol=0)


def test_beside_the_checkpoint(run: Path) -> None:
    config = checkpoint.read_config(run)
    assert config["vocabulary"][0] == "<eos>" and config["tokens"] == "words"
    assert Recipe.model_validate(fields()) == load_recipe(run / "recipe.yaml")
    events = [row["event"] for row in read_metrics(run)]
    assert events[0] == "start" and events[-1] == "test" and events.count("epoch") == 3
    steps = [row["step"] for row in read_metrics(run)]
    assert steps == sorted(steps)


def test_a_finished_run_is_left_as_it_is(run: Path, texts: Path) -> None:
    before = (run / "model.safetensors").read_bytes()
    metrics = train(Recipe.model_validate(fields()), texts, run, progress=False)
    assert (run / "model.safetensors").read_bytes() == before and metrics["epochs_done"] == 3


def test_another_recipe_or_text_does_not_resume(run: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"train.epochs 4, was 3.*no-resume"):
        train(Recipe.model_validate(fields(epochs=4)), texts, run, progress=False)
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text((texts / f"ptb.{split}.txt").read_text() + "w1 w2\n")
    with pytest.raises(CheckpointError, match="the data"):
        train(Recipe.model_validate(fields()), tmp_path, run, progress=False)


class _Stop(Exception):
    pass


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("at", [9, 40, 61])
def test_a_stopped_run_goes_on_to_the_bit(texts: Path, tmp_path: Path, optimiser: str, at: int) -> None:
    settings = fields(epochs=2, optimiser=optimiser, lr=1.0 if optimiser == "sgd" else 0.01)
    recipe = Recipe.model_validate(settings)
    train(recipe, texts, tmp_path / "whole", progress=False)
    stop(lambda: train(recipe, texts, tmp_path / "cut", progress=False), at - 1)
    train(recipe, texts, tmp_path / "cut", progress=False)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]
    logs = [
        [
            {k: v for k, v in row.items() if k not in ("tokens_per_s", "seconds")}
            for row in read_metrics(tmp_path / name)
        ]
        for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_a_killed_process_loses_at_most_one_interval(texts: Path, tmp_path: Path) -> None:
    settings = fields(epochs=200)
    (tmp_path / "r.yaml").write_text(json.dumps(settings))
    code = (
        "import sys; from tvm_doping.models.train import train;"
        "train(sys.argv[1], sys.argv[2], sys.argv[3], progress=False)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "r.yaml"), str(texts), str(tmp_path / "run")]
    child = subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (_last_step(tmp_path / "run") < 40):
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    reached = _last_step(tmp_path / "run")
    assert reached >= 40
    again = subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while time.monotonic() < deadline and _last_step(tmp_path / "run") <= reached:
        time.sleep(0.1)
    again.kill()
    again.wait()
    steps = [row["step"] for row in read_metrics(tmp_path / "run") if row["event"] == "train"]
    assert steps == sorted(set(steps)) and steps[-1] > reached


def _last_step(folder: Path) -> int:
    return max((row.get("step", 0) for row in read_metrics(folder)), default=0)


def test_no_resume_starts_anew(texts: Path, tmp_path: Path) -> None:
    one = Recipe.model_validate(fields(epochs=1))
    train(one, texts, tmp_path, progress=False)
    first = (tmp_path / "model.safetensors").read_bytes()
    train(Recipe.model_validate(fields(epochs=1, seed=5)), texts, tmp_path, resume=False, progress=False)
    assert (tmp_path / "model.safetensors").read_bytes() != first


def test_the_dense_perplexity_stands_beside(texts: Path, tmp_path: Path) -> None:
    plain = {**fields(epochs=1), "doping": None}
    dense = train(Recipe.model_validate(plain), texts, tmp_path / "dense", progress=False)
    assert checkpoint.load(tmp_path / "dense").structures == {}
    metrics = train(
        Recipe.model_validate(fields(epochs=1)),
        texts,
        tmp_path / "doped",
        dense=tmp_path / "dense",
        progress=False,
    )
    assert metrics["dense_test_perplexity"] == dense["test_perplexity"]
    with pytest.raises(CheckpointError, match=r"config\.json"):
        train(
            Recipe.model_validate(fields()), texts, tmp_path / "x", dense=tmp_path / "absent", progress=False
        )


def test_a_diverging_run_stops_and_keeps_the_last_sound_state(texts: Path, tmp_path: Path) -> None:
    with pytest.raises((TrainingError, DopingError), match=r"lr|diverged|learning rate"):
        train(Recipe.model_validate(fields(lr=1e9, clip=1e9)), texts, tmp_path, progress=False)
    assert not (tmp_path / "config.json").exists() or checkpoint.load(tmp_path)


def test_early_stopping(texts: Path, tmp_path: Path) -> None:
    metrics = train(
        Recipe.model_validate(fields(epochs=9, lr=1e-9, patience=2, hold=9)),
        texts,
        tmp_path,
        progress=False,
    )
    assert 5 <= metrics["epochs_done"] < 9  # not before S is thinned


def test_bfloat16(texts: Path, tmp_path: Path) -> None:
    metrics = train(Recipe.model_validate(fields(precision="bf16")), texts, tmp_path, progress=False)
    assert metrics["test_perplexity"] < 12  # a guess would give 21
    assert checkpoint.load(tmp_path).tensors["output.weight"].dtype == "float32"


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"batch": 2000}, DataError, "batch of 2000"),
        ({"steps": 5000}, DataError, "steps"),
    ],
)
def test_settings_that_do_not_fit_the_text(
    texts: Path, tmp_path: Path, changes: dict[str, int], error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        train(Recipe.model_validate(fields(**changes)), texts, tmp_path, progress=False)


def test_what_is_missing(tmp_path: Path, texts: Path) -> None:
    with pytest.raises(DataError, match="--data"):
        train("lm-small", None, tmp_path)
    with pytest.raises(RecipeError, match="lm-small"):
        train("lm-nothing", texts, tmp_path)
    with pytest.raises(DopingError, match="divisors"):
        train(
            Recipe.model_validate(fields()),
            texts,
            tmp_path,
            overrides={"doping.factors": [7, 5]},
            progress=False,
        )
    checkpoint.save(tmp_path, {"task": "unknown", "model": {}}, {})
    with pytest.raises(CheckpointError, match="task"):
        load_model(tmp_path)


def test_a_damaged_state_is_refused(texts: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(fields(epochs=1))
    train(recipe, texts, tmp_path, progress=False)
    (tmp_path / "resume.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="resume"):
        train(recipe, texts, tmp_path, progress=False)


def test_a_torn_line_of_metrics_is_dropped(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write("train", step=5, loss=float("nan"))
    log.write("train", step=9)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "tra')
    MetricsLog(tmp_path, step=6).write("train", step=8)
    assert [(row["step"], row.get("loss", 0)) for row in read_metrics(tmp_path)] == [(5, None), (8, 0)]


def test_a_weight_shared_by_two_layers_is_saved_and_loaded(texts: Path, tmp_path: Path) -> None:
    settings = fields(epochs=1)
    settings["model"] = {"embedding": 16, "hidden": 16, "layers": 1, "tied": True}
    train(Recipe.model_validate(settings), texts, tmp_path, progress=False)
    model = load_model(tmp_path)
    assert isinstance(model, LanguageModel) and model.output.weight is model.embedding.weight


def test_the_state_is_carried_from_segment_to_segment() -> None:
    model = LanguageModel(13, 8, 9, 2).eval()
    tokens = torch.randint(13, (12, 3))
    whole, (h, c) = model(tokens)
    first, state = model(tokens[:5])
    second, (h2, c2) = model(tokens[5:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(torch.stack([h, c]), torch.stack([h2, c2]))


def test_the_loss_is_summed_over_time_and_averaged_over_the_batch() -> None:
    model = LanguageModel(13, 8, 9, 2).eval()
    tokens = torch.randint(13, (13, 3))
    loss, *_ = lm.segment_loss(model, tokens[:-1], tokens[1:], None)
    logits, _ = model(tokens[:-1])
    mean = functional.cross_entropy(logits.flatten(0, 1), tokens[1:].flatten())
    assert float(loss.detach()) == pytest.approx(12 * float(mean.detach()), rel=1e-5)


def test_a_place_that_cannot_be_written_is_refused_first(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/foo")):
        with pytest.raises(CheckpointError, match="a folder that can be written"):
            train(Recipe.model_validate(fields()), texts, out, progress=False)


def test_a_line_an_epoch_where_there_is_no_terminal(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.model_validate(fields(epochs=3))
    stop(lambda: train(recipe, texts, tmp_path), 60)
    first = capsys.readouterr().err
    train(recipe, texts, tmp_path)
    out, err = capsys.readouterr()
    assert out == "" and re.search(r"^resumed at step 56 of \d+$", err, re.MULTILINE)
    lines = re.findall(
        r"^epoch (\d) of 3, step \d+: perplexity [\d.]+ train, [\d.]+ valid, \d+ s$",
        first + err,
        re.MULTILINE,
    )
    assert lines == ["1", "2", "3"]
    train(recipe, texts, tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""


def test_a_run_stopped_before_its_first_checkpoint_says_so(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(*_: Any) -> Any:
        raise _Stop

    monkeypatch.setattr(lm, "segment_loss", stopping)
    with pytest.raises(_Stop):
        train(Recipe.model_validate(fields()), texts, tmp_path, progress=False)
    with pytest.raises(CheckpointError, match=r"first checkpoint.*train` again"):
        load_model(tmp_path)


def test_a_recipe_from_before_a_field_existed_resumes(texts: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(fields(epochs=1))
    before = train(recipe, texts, tmp_path, progress=False)
    path = tmp_path / "recipe.yaml"
    assert "start: null" in path.read_text()
    path.write_text(path.read_text().replace("  start: null\n", ""))
    assert train(recipe, texts, tmp_path, progress=False) == before
