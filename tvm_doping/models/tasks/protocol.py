"""What an application gives the training loop: the form of every task beside this file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from tvm_doping.errors import RecipeError

Batch = tuple[Tensor, ...]
SPLITS = ("train", "valid", "test")


class Part(BaseModel):
    """A part of a recipe: unknown keys are errors, and a field's description is its line of help."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Protocol):
    """Three splits in whatever form a task likes."""

    @property
    def sha256(self) -> str:
        """Of all that training reads: a run is resumed with the same data only."""


AnyData = TypeVar("AnyData", bound=Data)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of every batch this process trains on: `index` of `count`."""

    index: int = 0
    count: int = 1

    def of(self, batch: int) -> slice:
        """Its places in a batch of so many. Raises RecipeError where the processes cannot part it equally."""
        if batch % self.count:
            raise RecipeError(
                "train.batch", f"a multiple of the {self.count} processes", f"{batch}", "Change one of them."
            )
        width = batch // self.count
        return slice(self.index * width, (self.index + 1) * width)


@dataclass(frozen=True, kw_only=True)
class Logits:
    """What a teacher's are compared with.

    values   (items, classes), with their gradient;
    counted  (items,) bool: those that the loss counts; None: all;
    scale    what the objective multiplies an item's cross entropy by.
    """

    values: Tensor
    scale: float
    counted: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Of one batch.

    objective  what is differentiated, scaled and regularised as the task likes;
    total      the plain loss summed over `count` items, detached: what is reported is the mean over an epoch;
    carried    the LSTM state for the next batch, where batches follow each other in time;
    logits     what the model can be taught by (`distil.Teacher`), of tasks that choose among classes.
    """

    objective: Tensor
    total: Tensor
    count: int
    carried: tuple[Tensor, ...] | None = None
    logits: Logits | None = None


class Task(ABC, Generic[AnyData]):
    """One application: its data, its model, and what is asked of a batch and of a split.

    data_recipe, model_recipe  the recipe's parts `data` and `model`;
    best    the metric of `evaluate` that chooses the checkpoint; higher: whether more of it is better;
    unit    what a Loss counts ("tokens"), for the speed in metrics.jsonl;
    classes whether its losses have logits.
    """

    data_recipe: ClassVar[type[Part]]
    model_recipe: ClassVar[type[Part]]
    best: ClassVar[str]
    higher: ClassVar[bool]
    unit: ClassVar[str]
    classes: ClassVar[bool] = False

    @abstractmethod
    def read(self, recipe: Any, folder: Path | None, name: str) -> AnyData:
        """The data that a recipe (called `name`) asks for. Raises DataError where the folder lacks something."""

    @abstractmethod
    def config(self, settings: Any, data: AnyData) -> dict[str, Any]:
        """The model's arguments: those of the recipe's part `model`, and sizes that the data decides."""

    @abstractmethod
    def model(self, **config: Any) -> nn.Module:
        """The dense model of these arguments, which `config.json` keeps as "model".

        What it is compiled with can be said by its own method `example_inputs()` (see `frontend.example`).
        """

    @abstractmethod
    def stored(self, data: AnyData) -> dict[str, Any]:
        """What `config.json` keeps besides, such as vocabularies: a model trained with another one is not the same."""

    @abstractmethod
    def batches(
        self, data: AnyData, *, batch: int, steps: int, seed: int, epoch: int, share: Share
    ) -> Sequence[Batch]:
        """The training split of one epoch (from 0), the same for the same seed and epoch, as many in every epoch."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, carried: tuple[Tensor, ...] | None) -> Loss:
        """Of a batch of `batches`, on the model's device, in training mode."""

    @abstractmethod
    def evaluate(
        self, model: nn.Module, data: AnyData, split: str, *, batch: int, device: torch.device, final: bool
    ) -> dict[str, float]:
        """Metrics of a split in evaluation mode; `best` is among them. final: once, of the best checkpoint, when more
        than `best` may be asked for."""

    def initialise(self, model: nn.Module, settings: Any, seed: int) -> None:
        """Draw the first weights, the same for the same seed; as PyTorch does, unless a task says otherwise."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in model.modules():
                reset: Any = getattr(module, "reset_parameters", None)
                if reset is not None:
                    reset()

    def shown(self, mean: float) -> tuple[str, float]:
        """Name and value under which the mean training loss is reported."""
        return "loss", mean


def perplexity_of(mean: float) -> float:
    """exp(mean loss), infinite beyond what a float holds."""
    return math.exp(mean) if mean < 700 else math.inf


def check_tied(settings: Any) -> Any:
    """For a recipe's part `model`: weights that an embedding and an output layer share need embedding = hidden."""
    if settings.tied and settings.embedding != settings.hidden:
        sizes = {"embedding": settings.embedding, "hidden": settings.hidden}
        raise PydanticCustomError(
            "tied", "tied needs embedding = hidden, not {embedding} and {hidden}", sizes
        )
    return settings
