"""Several batches to a step and several processes to a batch: the same training, and resumed to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.models.conftest import fields, stop
from tests.models.test_intent import write
from tvm_doping.errors import CheckpointError, RecipeError
from tvm_doping.models import Recipe, read_metrics
from tvm_doping.models.tasks import TASKS
from tvm_doping.models.tasks.protocol import Share
from tvm_doping.models.tasks.sentences import sample
from tvm_doping.models.train import train


def plain(**train_fields: Any) -> dict[str, Any]:
    """A doped recipe without chance: no dropout, no CMR."""
    settings = fields(**train_fields)
    settings["model"]["dropout"], settings["doping"]["cmr"] = 0.0, {}
    return settings


def curve(folder: Path) -> list[dict[str, Any]]:
    """What the metrics say, without times."""
    return [
        {key: value for key, value in row.items() if key not in ("tokens_per_s", "seconds")}
        for row in read_metrics(folder)
    ]


PROGRAM = """
import runpy
import sys
from shutil import copytree

import tvm_doping.models.tasks.language_model as lm
from tvm_doping.models.train import train

texts, out = sys.argv[1:]
sys.argv[1:] = ["train", "--recipe", f"{out}/plain.yaml", "--data", texts, "--out", f"{out}/two"]
try:
    runpy.run_module("tvm_doping", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    if stop.code:
        raise

recipe = f"{out}/chance.yaml"
train(recipe, texts, f"{out}/whole", progress=False)
real, calls = lm.segment_loss, iter(range(24))


def stopping(*arguments):
    if next(calls, None) is None:
        raise KeyboardInterrupt
    return real(*arguments)


lm.segment_loss = stopping
try:
    train(recipe, texts, f"{out}/cut", progress=False)
except KeyboardInterrupt:
    lm.segment_loss = real
from accelerate import PartialState

if PartialState().is_main_process:
    copytree(f"{out}/cut", f"{out}/left")
PartialState().wait_for_everyone()
train(recipe, texts, f"{out}/cut", progress=False)
"""


CHANCE = fields(epochs=1, accumulate=2, precision="bf16", save_steps=4)


@pytest.fixture(scope="module")
def launched(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote, started as docs/training.md says: `-m tvm_doping train`, and in the same processes a run that
    is stopped and resumed."""
    out = tmp_path_factory.mktemp("launched")
    for name, settings in (("plain", plain(epochs=2, accumulate=2)), ("chance", CHANCE)):
        (out / f"{name}.yaml").write_text(json.dumps(settings))
    (out / "program.py").write_text(PROGRAM)
    command = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    more = ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run(
        [sys.executable, "-m", *command, *more, str(out / "program.py"), str(texts), str(out)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HOME": str(out)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("test perplexity") == 1 == done.stdout.count("-> ")
    return out


@pytest.mark.slow
def test_two_processes_train_as_one(launched: Path, texts: Path, tmp_path: Path) -> None:
    train(Recipe.model_validate(plain(epochs=2, accumulate=2)), texts, tmp_path, progress=False)
    one, two = curve(tmp_path), curve(launched / "two")
    assert len(one) == len(two) > 8
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            # what is left of two parts that nearly cancel has fewer digits
            near = pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value
            assert b[key] == near, (key, a, b)


@pytest.mark.slow
def test_two_processes_resume_to_the_bit(launched: Path, texts: Path) -> None:
    """Each with the state of its own streams and its own dropout; in bfloat16, two batches to a step."""
    whole, cut = ((launched / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut and curve(launched / "whole") == curve(launched / "cut")
    left = load_file(launched / "left" / "resume.safetensors")
    for name in ("carried:0", "random:cpu"):
        assert not torch.equal(left[name], left[f"process1:{name}"])
    recipe = Recipe.model_validate(CHANCE)
    with pytest.raises(CheckpointError, match="the 2 processes it was started with"):
        train(recipe, texts, launched / "left", progress=False)
    assert train(recipe, texts, launched / "whole", progress=False)["finished"]


@pytest.mark.parametrize("at", [19, 42])
def test_a_stopped_run_of_groups_goes_on_to_the_bit(texts: Path, tmp_path: Path, at: int) -> None:
    recipe = Recipe.model_validate(fields(epochs=2, accumulate=2))
    train(recipe, texts, tmp_path / "whole", progress=False)
    stop(lambda: train(recipe, texts, tmp_path / "cut", progress=False), at - 1)
    train(recipe, texts, tmp_path / "cut", progress=False)
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut and curve(tmp_path / "whole") == curve(tmp_path / "cut")


def test_steps_are_those_of_the_optimiser(texts: Path, tmp_path: Path) -> None:
    for k in (1, 3):
        recipe = Recipe.model_validate(plain(epochs=1, accumulate=k))
        train(recipe, texts, tmp_path / str(k), progress=False)
    (batches, steps), densities = (curve(tmp_path / k)[0]["steps"] for k in "13"), curve(tmp_path / "3")
    assert batches % 3 and steps == -(-batches // 3)  # the last group is smaller
    assert curve(tmp_path / "3")[-1]["step"] == steps
    final = curve(tmp_path / "1")[-3]["density"]
    thinned = {row["step"]: row["density"] for row in densities if row["event"] == "train"}
    # over the first half of the optimiser's steps
    assert all((density == final) == (step >= steps // 2) for step, density in thinned.items())


def intents(folder: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """The weights after three epochs on 16 sentences of one length."""
    overrides = {
        "model.embedding": 8,
        "model.hidden": 8,
        "model.dropout": 0,
        "train.epochs": 3,
        "train.lr": 0.02,
        "train.clip": 0.5,  # acts: the norm is that of the whole group's gradient
        **changes,
    }
    out = folder.parent / "-".join(f"{value}" for value in changes.values())
    train("intent-dense", folder, out, overrides=overrides, progress=False)
    return {k[6:]: v for k, v in load_file(out / "resume.safetensors").items() if k.startswith("model:")}


def test_processes_take_the_batches_of_a_group() -> None:
    task, data = TASKS["intent"], sample()

    def epoch(**share: int) -> list[torch.Tensor]:
        batches = task.batches(data, batch=8, steps=1, seed=0, epoch=2, share=Share(**share))
        return [tokens for tokens, _ in batches]

    whole, parts = epoch(), [epoch(index=i, count=3) for i in range(3)]
    groups = [tokens for group in zip(*parts, strict=True) for tokens in group]
    assert len(whole) - len(groups) == len(whole) % 3
    assert all(map(torch.equal, groups, whole))  # what train.accumulate: 3 puts together in one process


def test_small_batches_together_are_a_large_one(tmp_path: Path) -> None:
    rows = [(f"w{i % 5} to w{i % 3}", f"l{i % 4}") for i in range(16)]
    data = tmp_path / "data"
    data.mkdir()
    write(data, train=rows, dev=rows[:4], test=rows[:4])
    large = intents(data, **{"train.batch": 16, "train.accumulate": 1})
    small = intents(data, **{"train.batch": 8, "train.accumulate": 2})
    for name, value in large.items():
        torch.testing.assert_close(small[name], value, rtol=1e-3, atol=1e-5)
    # what is left of a group counts by its own number of batches
    more = intents(data, **{"train.batch": 8, "train.accumulate": 5})
    assert all(torch.equal(more[name], value) for name, value in small.items())
    apart = intents(data, **{"train.batch": 8, "train.accumulate": 1})
    assert not torch.allclose(apart["output.weight"], large["output.weight"], rtol=1e-2)


@pytest.mark.parametrize(
    ("variable", "value", "field"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", r"train\.precision"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2", r"train\.accumulate"),
    ],
)
def test_flags_of_accelerate_do_not_change_a_recipe(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, field: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError, match=f"{field}.*{value}"):
        train(Recipe.model_validate(fields()), texts, tmp_path, progress=False)
