"""What trained runs are as compiled code: parameters, bytes of weights, and the time of a call, all in turns in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from tvm_doping.bench.machine import pinned
from tvm_doping.bench.measure import interleave, summarise
from tvm_doping.bench.subject import outputs_alone, subject_of
from tvm_doping.build import compile
from tvm_doping.bundle import Bundle
from tvm_doping.errors import BenchError
from tvm_doping.models import extract, load_model
from tvm_doping.models.tasks.seq2seq import Translator
from tvm_doping.runtime import Session
from tvm_doping.signature import first_step
from tvm_doping.targets import resolve


@dataclass(frozen=True, kw_only=True)
class Part:
    """What of a model is compiled and timed: its module, options of `compile`, and in words what a call is."""

    module: nn.Module
    options: dict[str, Any]
    call: str


def compiled(
    folders: Mapping[str, Path], *, seconds: float = 20.0, target: str = "auto"
) -> dict[str, dict[str, Any]]:
    """For each run folder, by name: "call" in words, "parameters" and "bytes" of the compiled part, "us" a call (see `summarise`).

    The part is that which the compression is of, as far as it can run by itself: the LSTM layers of a language model, step by step;
    of a translator the decoder, a step of a beam; else the whole model, for its example input. One thread, one stream.
    """
    machine = resolve(target)
    found: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], object]] = {}
    for name, folder in folders.items():
        part = part_of(load_model(folder))
        bundle = compile(part.module, machine, **part.options)
        calls[name] = _call(bundle, part.options.get("batch", 1))
        found[name] = {
            "call": part.call,
            "parameters": _parameters(part.module),
            "bytes": sum(array.nbytes for array in bundle.weights.values()),
        }
    if not calls:
        return {}
    with pinned(1):
        samples = interleave(calls, seconds=seconds)
    for name, values in samples.items():
        found[name]["us"] = {key: float(f"{value:.5g}") for key, value in summarise(values).items()}
    return found


def part_of(model: nn.Module) -> Part:
    """Which part of a trained model is timed, see `compiled`."""
    if isinstance(model, Translator):
        call = f"decoder with attention, a step of {model.beam} streams"
        return Part(module=model.decoder, options={"batch": model.beam}, call=call)
    try:
        lstm = subject_of(model)[1]
    except BenchError:
        return Part(module=model, options={}, call="the whole model, its example input of one stream")
    return Part(module=outputs_alone(lstm), options={}, call="LSTM layers, a step of one stream")


def _call(bundle: Bundle, streams: int) -> Callable[[], object]:
    """A call of the golden input, of so many streams: one step of it where the model is a stream."""
    inputs = []
    for spec in bundle.manifest.inputs:
        array = bundle.golden[f"input.{spec.name}"]
        for axis, dim in enumerate(spec.shape):
            if dim == "N":
                array = np.take(array, np.arange(streams) % array.shape[axis], axis=axis)
        inputs.append(np.ascontiguousarray(array))
    session = Session(bundle)
    if not bundle.manifest.streaming:
        return lambda: session.run(*inputs)
    first = [
        np.ascontiguousarray(array[first_step(spec)])
        for array, spec in zip(inputs, bundle.manifest.inputs, strict=True)
    ]
    return lambda: session.step(*first)


def _parameters(module: nn.Module) -> int:
    """Of doped weights those of the structures, else all; a shared one once."""
    doped = sum(structure.parameters for structure in extract(module).values())
    others = {
        id(p): p.numel() for name, p in module.named_parameters() if ".parametrizations." not in f".{name}"
    }
    return doped + sum(others.values())
