"""Knowledge distillation: a trained model's logits, besides the data, as what another one learns from."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tvm_doping import checkpoint
from tvm_doping.models.loading import load_model
from tvm_doping.models.recipe import DistilRecipe
from tvm_doping.models.starting import check_same
from tvm_doping.models.tasks import TASKS
from tvm_doping.models.tasks.protocol import Batch, Logits, Loss


class Teacher:
    """The model of a run folder, which teaches a student of the same task and vocabulary (Hinton et al. 2015, arXiv 1503.02531).

        (1 - w) objective + w scale T^2 sum over items of KL(softmax(t / T) || softmax(s / T))

    s, t  logits of the student and of the teacher, which is in evaluation mode and float32; w, T  weight and temperature;
    scale  what the task's objective multiplies an item's cross entropy by, so that both terms have one unit.

    sha256   of its weights: a run is resumed with the same teacher only;
    carried  its own LSTM state for the next batch.

    Raises CheckpointError for a folder of another task or vocabulary, or that holds no model.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: DistilRecipe,
        task: str,
        stored: dict[str, Any],
        device: torch.device,
    ) -> None:
        config = checkpoint.read_config(folder)
        check_same(f"train.teacher {folder}", config, task, stored)
        self.sha256: str = config["weights_sha256"]
        with torch.random.fork_rng(
            devices=[]
        ):  # its layers draw first weights: the student's dropout stays what it was
            self.model = load_model(folder).to(device).requires_grad_(False)
        self.task, self.settings = TASKS[task], settings
        self.carried: tuple[Tensor, ...] | None = None

    def teach(self, loss: Loss, batch: Batch) -> Loss:
        """The student's loss of a batch, with the objective above."""
        weight, T = self.settings.weight, self.settings.temperature
        with torch.no_grad():
            own = self.task.loss(self.model, batch, self.carried)
        self.carried = own.carried
        assert (
            loss.logits is not None and own.logits is not None
        )  # a recipe of a task without them is refused
        s, t = _log_chances(loss.logits, T), _log_chances(own.logits, T)
        divergence = functional.kl_div(s, t, reduction="sum", log_target=True) * (T * T * loss.logits.scale)
        return replace(loss, objective=(1 - weight) * loss.objective + weight * divergence)


def _log_chances(logits: Logits, temperature: float) -> Tensor:
    """log softmax (items, classes) of the items that count."""
    values = logits.values if logits.counted is None else logits.values[logits.counted]
    return functional.log_softmax(values.float() / temperature, -1)
