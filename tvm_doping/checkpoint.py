"""A run folder, `model.safetensors` + `config.json`: where training ends and compiling begins. Needs neither
torch nor TVM."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as serialise

from tvm_doping.errors import CheckpointError, DopingError
from tvm_doping.strict_json import read_json
from tvm_doping.structures import Structure, compression, from_spec, to_spec

FORMAT_VERSION = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
RECIPE, STATE = "recipe.yaml", "resume.safetensors"  # what training writes beside them


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a run folder holds.

    config      the JSON: "format_version", "task", "model" (arguments that build it), "metrics", "structures"
                (kind, shape and parameters of each doped weight), "compression", "weights_sha256", and what
                training wrote besides; of models of text "vocabulary" and "tokens" (see `tvm_doping.text`), of
                classifiers "labels", of forecasters "columns";
    tensors     the dense parameters and buffers, by name;
    structures  the doped weights, by parameter name: S sparse, never dense.
    """

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    structures: dict[str, Structure]


def save(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    structures: Mapping[str, Structure] | None = None,
) -> Path:
    """Write a run folder; each file appears whole or not at all. Returns the folder.

    config needs the keys "task" and "model"; NaN and infinity in it become null. An array of a structure is
    stored as "<parameter>::<array>", for example "lstm.weight_hh_l0::S.values".
    """
    out, structures = Path(folder), dict(structures or {})
    missing = [key for key in ("task", "model") if key not in config]
    if missing:
        raise CheckpointError(
            f"config for {out}", "keys task and model", f"none for {', '.join(missing)}", "Add them."
        )
    both = sorted(set(structures) & set(tensors))
    if both:
        raise CheckpointError(
            f"checkpoint {out}", "one value for each name", f"two for {both}", "Leave one out."
        )
    out.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    for name, structure in structures.items():
        arrays |= {f"{name}::{key}": np.ascontiguousarray(array) for key, array in structure.arrays().items()}
    weights = out / f".{WEIGHTS}.{os.getpid()}"
    weights.write_bytes(serialise(arrays))  # save_file would leave a file that only its owner can read
    full = {
        **config,
        "format_version": FORMAT_VERSION,
        "structures": {name: {**to_spec(s), "parameters": s.parameters} for name, s in structures.items()},
        "compression": _compression(structures),
        "weights_sha256": _sha256(weights),
    }
    os.replace(weights, out / WEIGHTS)
    _write_json(out / CONFIG, full)
    return out


def load(folder: str | os.PathLike[str]) -> Checkpoint:
    """Read a run folder. Raises CheckpointError when it is missing, damaged, or of another format version."""
    path = Path(folder)
    config = read_config(path)
    weights = path / WEIGHTS
    if not weights.is_file():
        raise _error(weights, "a file", "none", "Train again, or name the folder of a run.")
    if _sha256(weights) != config.get("weights_sha256"):
        raise _error(
            weights,
            f"the file that {CONFIG} describes",
            "another or a damaged one",
            "Copy the folder again, whole.",
        )
    try:
        arrays = load_file(weights)
        structures = {}
        for name, spec in config["structures"].items():
            prefix = f"{name}::"
            own = {
                key.removeprefix(prefix): arrays.pop(key) for key in list(arrays) if key.startswith(prefix)
            }
            structures[name] = from_spec(spec, own)
    except (
        *(SafetensorError, DopingError, OSError, KeyError, IndexError, TypeError, AttributeError, ValueError),
        *(OverflowError, MemoryError),
    ) as error:
        got = repr(str(error))[1:400]
        raise _error(path, "a sound checkpoint", got, "Copy the folder again, whole.") from error
    return Checkpoint(config=config, tensors=arrays, structures=structures)


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The `config.json` of a run folder, checked for its version."""
    path = Path(folder) / CONFIG
    try:
        config = read_json(path, lambda needs, got: _error(path, needs, got, "Copy the folder again, whole."))
    except FileNotFoundError:
        if is_started(folder):
            raise _error(
                Path(folder),
                "a run that reached its first checkpoint, after the first epoch",
                "one stopped before it",
                "Run the same `tvm-doping train` again: it goes on where it stopped.",
            ) from None
        raise _error(path, "a file", "none", "Train first, or name the folder of a run.") from None
    version = config.get("format_version") if isinstance(config, dict) else None
    if version != FORMAT_VERSION:
        raise _error(
            path, f"format version {FORMAT_VERSION}", repr(version)[:80], "Use the tvm_doping that wrote it."
        )
    found: dict[str, Any] = config
    return found


def is_started(folder: str | os.PathLike[str]) -> bool:
    """Whether training began in a folder, be there a checkpoint yet or not."""
    return any((Path(folder) / name).is_file() for name in (RECIPE, STATE))


def update_metrics(folder: str | os.PathLike[str], metrics: Mapping[str, Any]) -> None:
    """Add to the "metrics" of a run folder's config, keeping the others."""
    config = read_config(folder)
    config["metrics"] = {**config.get("metrics", {}), **metrics}
    _write_json(Path(folder) / CONFIG, config)


def _compression(structures: Mapping[str, Structure]) -> dict[str, Any]:
    """Of the doped weights together, by parameters; null where there are none."""
    total = compression(*structures.values())
    return {
        "by_parameters": total.by_parameters if structures else None,
        "dense_parameters": total.dense,
        "parameters": total.parameters,
    }


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    fields = _finite(value)
    words = fields.pop("vocabulary", None)
    text = json.dumps(fields, indent=1, allow_nan=False)
    if words is not None:  # on one line: a person reads the rest
        text = f'{text[:-2]},\n "vocabulary": {json.dumps(words)}\n}}'
    partial.write_text(f"{text}\n", encoding="utf-8")
    os.replace(partial, path)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _error(path: Path, needs: str, got: str, remedy: str) -> CheckpointError:
    return CheckpointError(str(path), needs, got, remedy)
