"""Between a run folder and a PyTorch model."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from tvm_doping import checkpoint
from tvm_doping.errors import CheckpointError
from tvm_doping.models.doping import budget_of, doped_weights, extract, put
from tvm_doping.models.factories import make_model
from tvm_doping.models.tasks import TASKS
from tvm_doping.structures import Doped, Structure

# Tasks of models that are the user's own: made by a factory with a name, or by their program.
OWN = ("factory", "module")


def load_model(
    folder: str | os.PathLike[str], factory: Callable[..., nn.Module] | str | None = None
) -> nn.Module:
    """The model of a run folder, its doped weights in place as parametrizations, in evaluation mode.

    factory: what makes the dense model, or its name ("file.py:factory"), for a folder of `compress` whose model is the user's
    own: the folder says how it was called, but no file may name code to run by itself.
    Raises CheckpointError when the folder does not hold a model of a known task.
    """
    found = checkpoint.load(folder)
    make = _maker(folder, found.config, factory)
    try:
        model = make()
        put(model, found.structures, *_planned(found))
        tensors = {name: torch.from_numpy(array.copy()) for name, array in found.tensors.items()}
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except (TypeError, AttributeError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}", "a model that its config describes", str(error), "Copy it again, whole."
        ) from error
    absent = [name for name in missing if not _is_doped(name, _doped_names(model))]
    if absent or unexpected:
        raise CheckpointError(
            f"{folder}",
            "every parameter once",
            f"{absent or unexpected} {'missing' if absent else 'too many'}",
            "Train again.",
        )
    return model.eval()


def _maker(
    folder: str | os.PathLike[str], config: dict[str, Any], factory: Callable[..., nn.Module] | str | None
) -> Callable[[], nn.Module]:
    """What makes the dense model that a config describes."""
    task, arguments = config.get("task"), config.get("model") or {}
    if task in TASKS:
        return lambda: TASKS[task].model(**arguments)
    if task in OWN:
        keywords = dict(arguments.get("arguments") or {})
        if isinstance(factory, str):
            return partial(make_model, factory, keywords)
        if factory is not None:
            return partial(factory, **keywords)
        name = str(arguments.get("factory") or "file.py:factory")
        raise CheckpointError(
            f"{folder}",
            f"the factory of its model, a {arguments.get('class') or name}, as a folder runs no code that it names",
            "none",
            f"Name it: `tvm-doping compile {folder} --factory {name}`, or load_model(folder, factory).",
        )
    raise CheckpointError(
        f"task of {folder}",
        f"one of {', '.join(TASKS)}",
        repr(task),
        "Build the model and use models.put().",
    )


def _planned(found: checkpoint.Checkpoint) -> tuple[dict[str, str], dict[str, int]]:
    """The patterns and final nonzeros of S that the config's "doping" asks for; nothing where it says nothing."""
    doping = found.config.get("doping") or {}
    if not doping.get("compression"):
        return {}, {}
    nonzeros = {
        name: budget_of(doped.shape[0] * doped.shape[1], doping["compression"]) - doped.base.parameters
        for name, doped in found.structures.items()
        if isinstance(doped, Doped) and doping.get("sparse", True)
    }
    return dict.fromkeys(nonzeros, doping.get("pattern", "unstructured")), nonzeros


def model_tensors(model: nn.Module) -> tuple[dict[str, np.ndarray], dict[str, Structure]]:
    """(dense parameters and buffers, doped weights) of a model, as `checkpoint.save` takes them."""
    doped = _doped_names(model)
    tensors = {
        name: value.detach().cpu().numpy().copy()
        for name, value in model.state_dict().items()
        if not _is_doped(name, doped)
    }
    structures: dict[str, Any] = extract(model)
    return tensors, structures


def _doped_names(model: nn.Module) -> set[str]:
    """The parameter names of all doped weights, a tied one by each of its names."""
    return {path for path, *_ in doped_weights(model, shared=True)}


def _is_doped(name: str, doped: set[str]) -> bool:
    """Whether a state dict's key is of a doped weight: "lstm.parametrizations.weight_hh_l0.0.mask" is."""
    before, found, after = name.partition("parametrizations.")
    return bool(found) and before + after.split(".")[0] in doped
