"""train.teacher: the student's objective is Hinton's, resumes to the bit, and only a fitting teacher teaches."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.conftest import fields, stop
from tvm_doping import checkpoint
from tvm_doping.errors import CheckpointError, RecipeError
from tvm_doping.models import Recipe, load_model, load_recipe, read_metrics
from tvm_doping.models.distil import Teacher
from tvm_doping.models.recipe import DistilRecipe
from tvm_doping.models.tasks import TASKS, Task
from tvm_doping.models.tasks import language_model as lm
from tvm_doping.models.tasks.protocol import Share
from tvm_doping.models.train import train


@pytest.fixture(scope="module")
def dense(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model with more hidden units than its students."""
    out, settings = tmp_path_factory.mktemp("dense"), {**fields(epochs=3), "doping": None}
    settings["model"] = {**settings["model"], "hidden": 24}
    train(Recipe.model_validate(settings), texts, out, progress=False)
    return out


def taught(dense: Path, **changes: Any) -> Recipe:
    return Recipe.model_validate(fields(teacher=str(dense), **changes))


def objective(s: torch.Tensor, t: torch.Tensor, cross_entropy: float, w: float, T: float) -> float:
    """Hinton et al. 2015 by its definition, in float64, of a batch whose loss is a mean."""
    p, q = (torch.softmax(logits.double() / T, -1) for logits in (t, s))
    divergence = float((p * (p / q).log()).sum(-1).mean())
    return (1 - w) * cross_entropy + w * T * T * divergence


class Fixed(nn.Module):
    """A teacher that says the same of every item."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, *_: Any) -> torch.Tensor:
        return self.logits


@pytest.mark.parametrize(("recipe", "model"), [("intent", {}), ("mt", {"smoothing": 0.1})])
def test_the_objective_is_that_of_its_definition(recipe: str, model: dict[str, Any]) -> None:
    changes = {f"model.{key}": value for key, value in model.items()}
    small = {"model.embedding": 8, "model.hidden": 8, "model.dropout": 0, "data.kind": "sample"}
    plan = load_recipe(recipe, {**small, **changes})
    task: Task[Any] = TASKS[plan.task]
    data = task.read(plan.data, None, "test")
    student = task.model(**task.config(plan.model, data))
    task.initialise(student, plan.model, 0)
    batch = task.batches(data, batch=4, steps=1, seed=0, epoch=0, share=Share())[0]
    loss = task.loss(student, batch, None)
    assert loss.logits is not None
    other = torch.randn_like(loss.logits.values)
    teacher = object.__new__(Teacher)
    teacher.task, teacher.carried = task, None
    teacher.model = Fixed(other.reshape(student(*batch[:-1]).shape))
    teacher.settings = DistilRecipe(weight=0.3, temperature=3.0)
    found = teacher.teach(loss, batch)
    counted = slice(None) if loss.logits.counted is None else loss.logits.counted
    s, t = loss.logits.values.detach()[counted], other[counted]
    assert len(s) == loss.count
    wanted = objective(s, t, float(loss.objective.detach()), 0.3, 3.0)
    assert float(found.objective.detach()) == pytest.approx(wanted, rel=1e-5)
    assert found.total is loss.total  # what is reported


def test_the_sum_over_time_of_language_models(dense: Path, texts: Path) -> None:
    """Two segments, so that the teacher's state is carried as well."""
    plan, task = load_recipe(taught(dense)), TASKS["language_model"]
    data = task.read(plan.data, texts, "test")
    student, teacher_model = task.model(**task.config(plan.model, data)).eval(), load_model(dense)
    teacher = Teacher(dense, plan.train.distil, plan.task, task.stored(data), torch.device("cpu"))
    batches, state, own = task.batches(data, batch=8, steps=10, seed=0, epoch=0, share=Share()), None, None
    for tokens, targets in batches[:2]:
        loss = task.loss(student, (tokens, targets), state)
        found = teacher.teach(loss, (tokens, targets))
        s, _ = student(tokens, state)
        with torch.no_grad():
            t, own = teacher_model(tokens, own)
        state = loss.carried
        mean = objective(s.detach(), t, float(loss.objective.detach()) / 10, 0.5, 2.0)
        assert float(found.objective.detach()) == pytest.approx(10 * mean, rel=1e-4)
    assert not any(part.requires_grad for part in teacher.model.parameters())


def test_a_teacher_alone_teaches(dense: Path, texts: Path, tmp_path: Path) -> None:
    """With weight 1 the data say nothing, and what is reported still is the loss on them."""
    only = taught(dense, epochs=2, distil={"weight": 1, "temperature": 1})
    metrics = train(only, texts, tmp_path, progress=False)
    teacher = checkpoint.read_config(dense)["metrics"]["test_perplexity"]
    assert metrics["test_perplexity"] < 15 and teacher < 12  # a guess would give 21
    rows = [row["train_perplexity"] for row in read_metrics(tmp_path) if row["event"] == "epoch"]
    assert teacher / 2 < rows[-1] < rows[0] < 40


@pytest.mark.parametrize("at", [9, 61])
def test_a_stopped_student_goes_on_to_the_bit(dense: Path, texts: Path, tmp_path: Path, at: int) -> None:
    recipe = taught(dense, epochs=1, precision="bf16")
    train(recipe, texts, tmp_path / "whole", progress=False)
    stop(lambda: train(recipe, texts, tmp_path / "cut", progress=False), at)
    train(recipe, texts, tmp_path / "cut", progress=False)
    whole, cut = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_what_does_not_fit_is_named(
    dense: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="none"):
        train(taught(tmp_path / "absent"), texts, tmp_path / "x", progress=False)
    overrides = {"data.kind": "sample", "train.teacher": str(dense)}
    with pytest.raises(CheckpointError, match=r"train\.teacher.*a run of intent.*language_model"):
        train("intent", None, tmp_path / "y", overrides=overrides, progress=False)
    other = tmp_path / "texts"
    other.mkdir()
    for path in texts.iterdir():
        (other / path.name).write_text(path.read_text().replace("w3", "x"))
    with pytest.raises(CheckpointError, match=r"train\.teacher.*vocabulary"):
        train(taught(dense), other, tmp_path / "z", progress=False)
    monkeypatch.setattr(type(TASKS["intent"]), "classes", False)
    with pytest.raises(RecipeError, match=r"train\.teacher.*logits \(language_model, translation\).*intent"):
        load_recipe("intent", {"train.teacher": str(dense)})
    with pytest.raises(RecipeError, match=r"train\.distil\.weight"):
        load_recipe("lm-tiny", {"train.distil.weight": 0})


def test_another_teacher_does_not_go_on_and_a_finished_run_needs_none(
    dense: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = shutil.copytree(dense, tmp_path / "teacher")
    recipe, real, calls = taught(teacher, epochs=1), lm.segment_loss, iter(range(41))
    monkeypatch.setattr(lm, "segment_loss", lambda *a: real(*a) if next(calls, None) is not None else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(recipe, texts, tmp_path / "run", progress=False)
    monkeypatch.setattr(lm, "segment_loss", real)
    found = checkpoint.load(dense)
    halved = {**found.tensors, "output.bias": found.tensors["output.bias"] / 2}
    checkpoint.save(teacher, found.config, halved, found.structures)
    with pytest.raises(CheckpointError, match="the teacher it was started with"):
        train(recipe, texts, tmp_path / "run", progress=False)
    checkpoint.save(teacher, found.config, found.tensors, found.structures)
    before = train(recipe, texts, tmp_path / "run", progress=False)
    shutil.rmtree(teacher)
    assert train(recipe, texts, tmp_path / "run", progress=False) == before
