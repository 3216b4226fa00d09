"""The weights of a finished dense run as those that another run starts from."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from tvm_doping import checkpoint
from tvm_doping.errors import CheckpointError

_NAMED = 4  # differences that an error lists


def start_from(folder: str | os.PathLike[str], model: nn.Module, task: str, stored: dict[str, Any]) -> None:
    """Put the weights of the dense run in `folder` into a dense model of the same task, sizes and vocabulary.

    Raises CheckpointError for a doped run, and for one of another task, other shapes, or another `stored` (what the task
    keeps in the config, such as the vocabulary: the same row of an embedding would be another word).
    """
    found = checkpoint.load(folder)
    what = f"train.start {folder}"
    check_same(what, found.config, task, stored)
    if found.structures:
        raise CheckpointError(
            what,
            "a run of a dense model",
            f"a doped one ({len(found.structures)} doped weights)",
            "Name the folder of the dense run.",
        )
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: array.shape for name, array in found.tensors.items()}
    other = [
        f"{name} {given.get(name, 'absent')}, here {wanted.get(name, 'absent')}"
        for name in {**wanted, **given}
        if wanted.get(name) != given.get(name)
    ]
    if other:
        more = f" and {len(other) - _NAMED} more" if len(other) > _NAMED else ""
        raise CheckpointError(
            what,
            "weights of the shapes that this recipe's model has",
            "; ".join(other[:_NAMED]) + more,
            "Make the part `model` of both recipes agree.",
        )
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in found.tensors.items()})


def check_same(what: str, config: dict[str, Any], task: str, stored: dict[str, Any]) -> None:
    """Raise CheckpointError unless a run, by its config, is of this task, and of data that make the same `stored`."""
    if config.get("task") != task:
        raise CheckpointError(
            what, f"a run of {task}", f"one of {config.get('task')}", "Name another folder."
        )
    strange = [key for key, value in stored.items() if config.get(key) != value]
    if strange:
        raise CheckpointError(
            what,
            f"the {' and '.join(strange)} of this run's data",
            "another",
            "Train both on the same data, with the same part `data` of the recipe.",
        )
