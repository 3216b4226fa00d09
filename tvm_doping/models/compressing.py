"""compress(): any model that was trained dense -> a doped one, and what that costs, weight by weight."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tvm_doping import checkpoint
from tvm_doping.errors import CheckpointError, InvalidInput
from tvm_doping.models.checks import check_finite
from tvm_doping.models.compression_report import Report, report
from tvm_doping.models.doping import StructureName, dope, doped_weights, extract, original
from tvm_doping.models.factories import find, make_model
from tvm_doping.models.finetuning import Finetuning
from tvm_doping.models.loading import load_model, model_tensors
from tvm_doping.models.moments import Moments, moments, run
from tvm_doping.places import check_writable

_SOUND = "Give sound weights; if the fine-tuning made them so, lower its learning rate."
Loop = Callable[[nn.Module, Finetuning], object]


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """model: doped, in evaluation mode; report: errors and sizes, weight by weight; folder: the run folder written, if any."""

    model: nn.Module
    report: Report
    folder: Path | None


def compress(
    model: nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    arguments: Mapping[str, Any] | None = None,
    weights: str | os.PathLike[str] | None = None,
    structure: StructureName = "kronecker",
    compression: float = 20.0,
    pattern: str = "unstructured",
    modules: Sequence[str] | str | None = None,
    factors: tuple[int, int] | None = None,
    rank: int | None = None,
    sparse: bool = True,
    samples: Iterable[Any] | str | None = None,
    finetune: Loop | str | None = None,
    anneal: float = 0.5,
    cmr: float = 0.0,
) -> Compressed:
    """Replace each chosen weight of a dense model by the nearest structured part plus S; then fine-tune, if asked to.

    model      an nn.Module, which is left as it is; a run folder of `train`; or what makes the model, "package.module:factory"
               or "file.py:factory", called with `arguments`, and with the state dict in `weights` (safetensors);
    out        the run folder to write, which `compile` takes;
    structure, compression, pattern, modules, factors, rank, sparse   as `dope()` has them; sizes of factors that are not given
               are searched for the least error;
    samples    inputs for the model, each a tensor or a tuple of arguments (or the name of a function that returns them): the
               error of outputs is then reported too, and S, where nothing is fine-tuned, gets the values of least error of
               outputs in place of those of least error of the weight;
    finetune   a training loop of your own, f(model, finetuning), or its name: see `Finetuning`, which gets `anneal` and `cmr`.

    Raises InvalidInput for a model or options that cannot be used, CheckpointError for weights or a folder that cannot.
    """
    if out is not None:
        check_writable(Path(out), CheckpointError, f"run folder {out}")
    loop: Loop | None = find(finetune) if isinstance(finetune, str) else finetune
    if loop is not None and not callable(loop):
        raise InvalidInput(
            "finetune", "a function f(model, finetuning)", type(loop).__name__, "Name a function."
        )
    dense, config = _dense(model, arguments, weights)
    if any(True for _ in doped_weights(dense)):
        raise InvalidInput(
            "the model", "weights that are dense", "doped ones", "Compress the model it was made from."
        )
    inputs = _inputs(samples)
    met = moments(dense, inputs) if inputs else {}
    doping: dict[str, Any] = {
        "structure": structure,
        "compression": compression,
        "pattern": pattern,
        "modules": [modules] if isinstance(modules, str) else modules if modules is None else list(modules),
        "factors": factors,
        "rank": rank,
        "sparse": sparse,
        "init": "nearest",
    }
    check_finite(dense, _SOUND)
    doped = dope(copy.deepcopy(dense), **doping).eval()
    if loop is None:
        _refit(dense, doped, met)
    found = report(dense, extract(doped), met, _apart(dense, doped, inputs))
    if loop is not None:
        Finetuning(doped, anneal=anneal, cmr=cmr).run(loop)
        check_finite(doped, _SOUND)
        after = report(dense, extract(doped), met, _apart(dense, doped, inputs))
        found = found.finetuned(after)
    folder = None
    if out is not None:
        told = {
            "doping": doping,
            "metrics": {},
            "report": found.as_json(),
            "dense_metrics": config.get("metrics"),
        }
        folder = checkpoint.save(out, {**config, **told}, *model_tensors(doped))
    return Compressed(model=doped, report=found, folder=folder)


def _dense(
    model: nn.Module | str | os.PathLike[str],
    arguments: Mapping[str, Any] | None,
    weights: str | os.PathLike[str] | None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The dense model, in evaluation mode, and the config of its run folder."""
    named = not isinstance(model, nn.Module) and ":" in os.path.basename(os.fspath(model))
    if not named and (arguments or weights is not None):
        raise InvalidInput(
            "arguments and weights",
            "a factory that makes the model",
            f"{model}"[:80],
            "Name it: file.py:factory.",
        )
    if isinstance(model, nn.Module):
        return copy.deepcopy(model).eval(), {"task": "module", "model": {"class": type(model).__qualname__}}
    if named:
        spec = os.fspath(model)
        made = make_model(spec, arguments, weights)
        return made, {"task": "factory", "model": {"factory": spec, "arguments": dict(arguments or {})}}
    config = checkpoint.read_config(model)
    return load_model(model), {
        key: value
        for key, value in config.items()
        if key not in ("format_version", "structures", "compression", "weights_sha256")
    }


@torch.no_grad()
def _refit(dense: nn.Module, doped: nn.Module, met: Mapping[str, Moments]) -> None:
    """Give S of each weight whose inputs are known the values of least output error."""
    for path, module, name, weight in doped_weights(doped):
        if path in met:
            W = dense.get_parameter(path).detach().cpu().numpy()
            S = original(module, name)
            values = met[path].refit(W, weight.base().to_dense(), weight.mask.cpu().numpy())
            S.copy_(torch.where(weight.mask, torch.from_numpy(values).to(S), S))


def _inputs(samples: Iterable[Any] | str | None) -> list[Any]:
    """The samples as a list; a function named is called."""
    if isinstance(samples, str):
        made = find(samples)
        samples = made() if callable(made) else made
    if samples is None:
        return []
    if isinstance(samples, Tensor):
        samples = [samples]
    try:
        found = list(samples)
    except TypeError:
        found = []
    if not found:
        raise InvalidInput(
            "samples",
            "inputs of the model, each a tensor or a tuple",
            type(samples).__name__,
            "Return a list of them.",
        )
    return found


@torch.no_grad()
def _apart(dense: nn.Module, doped: nn.Module, inputs: Sequence[Any]) -> float | None:
    """||y - y'|| / ||y|| of the models' first outputs over the inputs; None without any."""
    above = below = 0.0
    for sample in inputs:
        y, other = (_first(run(model, sample)) for model in (dense, doped))
        above += float((y - other).double().square().sum())
        below += float(y.double().square().sum())
    return float(np.sqrt(above / (below or 1.0))) if inputs else None


def _first(output: Any) -> Tensor:
    while isinstance(output, tuple | list):
        output = output[0]
    if isinstance(output, Mapping):
        output = next(iter(output.values()))
    if not isinstance(output, Tensor):
        raise InvalidInput(
            "output of the model", "a tensor first", type(output).__name__, "Leave samples out."
        )
    return output
