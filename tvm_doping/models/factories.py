"""Python objects that a user names: "package.module:name" or "file.py:name", and models made by them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from tvm_doping.errors import CheckpointError, DopingError, InvalidInput


def find(spec: str) -> Any:
    """The object of that name, whose module is imported, or whose file is run. Only ever call it with what the user wrote:
    no file that was received may name code to run. Raises InvalidInput where there is none."""
    place, colon, name = spec.rpartition(":")
    if not (colon and place and name):
        raise InvalidInput(
            spec or "the name of an object",
            "package.module:name or file.py:name",
            "no colon",
            "For example app.py:make_model.",
        )
    found: Any = _file(Path(place)) if place.endswith(".py") else _module(place)
    for part in name.split("."):
        if not hasattr(found, part):
            public = (
                ", ".join(n for n in vars(found) if not n.startswith("_"))[:400]
                if hasattr(found, "__dict__")
                else ""
            )
            raise InvalidInput(spec, f"{part} in {place}", "none there", f"It has: {public or 'nothing'}.")
        found = getattr(found, part)
    return found


def make_model(
    factory: str,
    arguments: Mapping[str, Any] | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """The nn.Module that the factory named (see `find`) returns for keyword arguments, with the state dict of a safetensors
    file in it, in evaluation mode. Raises InvalidInput, and CheckpointError for weights that do not fit."""
    make = find(factory)
    if not callable(make):
        raise InvalidInput(
            factory, "a function or class that makes the model", type(make).__name__, "Name one."
        )
    try:
        model = make(**(arguments or {}))
    except DopingError:
        raise
    except Exception as error:  # the user's own code: whatever it raises
        got = f"{type(error).__name__}: {str(error)[:400]}"
        raise InvalidInput(
            f"{factory}({_shown(arguments)})", "to make a model", got, "Correct it, or its arguments."
        ) from error
    if not isinstance(model, nn.Module):
        raise InvalidInput(f"{factory}()", "a torch.nn.Module", type(model).__name__, "Return the model.")
    if weights is not None:
        _load(model, Path(weights))
    return model.eval()


def _shown(arguments: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in (arguments or {}).items())[:200]


def _load(model: nn.Module, path: Path) -> None:
    """Put the state dict of a safetensors file into the model; every name once, but for one that is tied to another."""
    if not path.is_file():
        raise CheckpointError(
            str(path), "a file", "none", "Write it with safetensors.torch.save_model(model, path)."
        )
    try:
        tensors = load_file(path)
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(
            str(path),
            "a state dict of the model, in safetensors",
            str(error)[:600],
            "Save the model's state dict again.",
        ) from error
    # save_model() writes one name of a tied weight
    state = model.state_dict()
    present = {state[name].data_ptr() for name in tensors if name in state}
    missing = [name for name in missing if state[name].data_ptr() not in present or not state[name].numel()]
    if missing or unexpected:
        got = "; ".join(
            f"{word} {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
            for word, names in (("without", missing), ("with", unexpected))
            if names
        )
        raise CheckpointError(
            str(path), "every parameter of the model once", got, "Make the model that the weights are of."
        )
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not torch.isfinite(value).all():
                raise CheckpointError(
                    str(path), "finite numbers", f"NaN or infinite ones in {name}", "Use sound weights."
                )


def _module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` has it; a console script's path lacks it
    try:
        return importlib.import_module(name)
    except Exception as error:  # the user's own code: whatever it raises
        got = f"{type(error).__name__}: {str(error)[:400]}"
        raise InvalidInput(
            f"module {name}", "one that can be imported", got, "Correct its name, or the module."
        ) from error


def _file(path: Path) -> ModuleType:
    """The module that a file makes; run once a process, and what it imports beside it is found."""
    if not path.is_file():
        raise InvalidInput(str(path), "a Python file", "none there", "Correct its name.")
    full = path.resolve()
    name = f"tvm_doping_user_{full.stem}_{sha256(str(full).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, full)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    if str(full.parent) not in sys.path:
        sys.path.insert(0, str(full.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code: whatever it raises
        del sys.modules[name]
        got = f"{type(error).__name__}: {str(error)[:400]}"
        raise InvalidInput(str(path), "a Python file that runs", got, "Correct it.") from error
    return module
