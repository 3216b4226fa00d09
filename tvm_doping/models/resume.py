"""The state of a training run on disk, enough to go on to the bit after a kill; no pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tvm_doping import checkpoint
from tvm_doping.errors import CheckpointError
from tvm_doping.models.doping import doped_weights

FILE = checkpoint.STATE


def save_state(
    folder: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    own: Sequence[dict[str, Tensor]],
    progress: dict[str, Any],
) -> None:
    """Write model, optimiser, each process's `own_state` and `progress` (JSON) as one file, atomically."""
    tensors = {f"model:{name}": value for name, value in model.state_dict().items()}
    state = optimiser.state_dict()
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser:{index}:{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    for process, values in enumerate(own):
        tensors |= {_prefix(process) + key: value for key, value in values.items()}
    header = {"progress": progress, "groups": state["param_groups"], "scalars": scalars}
    partial = folder / f".{FILE}.{os.getpid()}"
    # clones: safetensors refuses two names for one memory, which tied weights are
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    save_file(copies, partial, metadata={"state": json.dumps(header)})
    os.replace(partial, folder / FILE)


Carried = tuple[Tensor, ...] | None


def own_state(carried: Carried = None, taught: Carried = None) -> dict[str, Tensor]:
    """What no other process has: the random generators, and the LSTM state carried from batch to batch, of the model and of
    its teacher."""
    own = {f"carried:{index}": value for index, value in enumerate(carried or ())}
    own |= {f"taught:{index}": value for index, value in enumerate(taught or ())}
    own["random:cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        own["random:cuda"] = torch.cuda.get_rng_state()
    return own


def load_state(
    folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device, process: int = 0
) -> tuple[Carried, Carried, dict[str, Any]]:
    """Put back what `save_state` wrote, for one process; returns (carried LSTM state, the teacher's, progress). Raises
    CheckpointError if damaged.

    A process that the state knows nothing of keeps its random generators.
    """
    path = folder / FILE
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        model.load_state_dict(_part(tensors, "model:"))
        state: dict[int, dict[str, Any]] = {}
        for key, value in _part(tensors, "optimiser:").items():
            index, _, name = key.partition(":")
            state.setdefault(int(index), {})[name] = value
        for index, values in header["scalars"].items():
            state.setdefault(int(index), {}).update(values)
        optimiser.load_state_dict({"state": state, "param_groups": header["groups"]})
        own = _part(tensors, _prefix(process)) if process else tensors
        if own:
            torch.set_rng_state(own["random:cpu"])
        if "random:cuda" in own and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["random:cuda"])
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise _damaged(path, error) from error
    carried, taught = (_part(own, f"{name}:") for name in ("carried", "taught"))
    progress: dict[str, Any] = header["progress"]
    first, second = (
        tuple(some[key].to(device) for key in sorted(some)) or None for some in (carried, taught)
    )
    return first, second, progress


def fit_factors(folder: Path, model: nn.Module) -> None:
    """Give the factors of a doped model the shapes that they have in the state, before it is loaded.

    Which shapes are nearest depends on the weights that a run started from (`train.start`), which a resumed one does not read.
    Raises CheckpointError if damaged.
    """
    path = folder / FILE
    try:
        with safe_open(path, framework="pt") as file:
            for name, _, key, weight in doped_weights(model):
                before, prefix = (
                    weight.factor_parameters,
                    f"model:{name.removesuffix(key)}parametrizations.{key}.0.",
                )
                for factor in weight.factor_names:
                    shape = file.get_slice(prefix + factor).get_shape()
                    if tuple(shape) != tuple(getattr(weight, factor).shape):
                        setattr(weight, factor, nn.Parameter(torch.empty(shape)))
                if weight.nonzeros:
                    weight.nonzeros += before - weight.factor_parameters
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        str(path),
        "the state of this run",
        str(error),
        "Start anew with resume=False (--no-resume), or in another folder.",
    )


def _prefix(process: int) -> str:
    """Of the names of what is a process's own; none of the first's."""
    return f"process{process}:" if process else ""


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
