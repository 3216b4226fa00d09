"""One benchmark, from model to results: compile, open each engine, check it against PyTorch, time all."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_doping.bench.engines import ENGINES, make
from tvm_doping.bench.engines.doped import Doped
from tvm_doping.bench.engines.stream import Engine, Stream
from tvm_doping.bench.machine import describe, pinned
from tvm_doping.bench.measure import interleave, summarise, tokens_a_second
from tvm_doping.bench.subject import Subject, outputs_alone, subject_of
from tvm_doping.bundle import Bundle
from tvm_doping.errors import BenchError
from tvm_doping.sparsity.values import PRECISIONS, Precision

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
DOPED = "tvm_doping"
SCOPES = ("lstm", "model")
_TOLERANCE = (
    1e-4  # of an fp32 engine against PyTorch, times max(1, max|y|): sums in another order, over T steps
)
_CHECKED = 3  # calls in a row that are compared, so that a state that is lost or stale shows


def measure_model(
    model: str | Path | torch.nn.Module,
    *,
    bundle: str | Path | Bundle | None,
    target: str,
    batch: int,
    precision: Precision | None,
    steps: tuple[int, ...],
    threads: int,
    baselines: tuple[str, ...],
    scopes: tuple[str, ...],
    seconds: float,
    seed: int,
    echo: Callable[[str], None],
) -> dict[str, Any]:
    """See tvm_doping.bench.run."""
    _check_arguments(batch, steps, baselines, scopes, seconds)
    module, name, metrics = _load(model)
    subject, lstm = subject_of(module)
    if subject.embedding is None and subject.decoder is None:
        scopes = ("lstm",)
    if bundle is not None and not isinstance(bundle, Bundle):
        bundle = Bundle.load(bundle)
    precision = _agreed(precision, bundle)
    if bundle is not None and "model" in scopes:
        _check_bundle(bundle, subject)
    subjects = {"lstm": subject.lstm_only(), "model": subject}
    results: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "settings": {
            "batch": batch,
            "precision": precision,
            "threads": threads,
            "seconds": seconds,
            "seed": seed,
        },
        "model": {
            "name": name,
            "layers": [{"inputs": layer.inputs, "hidden": layer.hidden} for layer in subject.layers],
            "lstm_weights": subject.lstm_weights,
            "metrics": metrics,
        },
        "cells": [],
    }
    with pinned(threads) as cores:
        results["machine"]["cores_used"] = cores
        for scope in scopes:
            what = subjects[scope]
            compiled = _compiled(
                bundle,
                module if scope == "model" else outputs_alone(lstm),
                scope,
                target,
                batch,
                min(steps),
                precision,
                threads,
                name,
                echo,
            )
            results["model"][scope] = _facts(compiled)
            engines: dict[str, Engine] = {DOPED: Doped(compiled, threads)}
            for baseline in baselines:
                echo(f"{scope}: setting up {baseline}")
                engines[baseline] = make(baseline, what, threads)
            for t in steps:
                echo(f"{scope}, T = {t}: checking against PyTorch, then timing")
                share = seconds / (len(scopes) * len(steps))
                cell = _cell(engines, _precisions(engines, precision), what, t, batch, share, seed)
                if scope == "model":
                    for engine in cell:
                        engine["tokens_per_second"] = tokens_a_second(t, batch, engine["us"]["median"])
                results["cells"].append({"scope": scope, "steps": t, "batch": batch, "engines": cell})
    results["machine"]["load_after"] = [round(value, 2) for value in os.getloadavg()]
    return results


def check(
    name: str, stream: Stream, xs: list[np.ndarray], expected: list[np.ndarray], *, exact: bool
) -> float | None:
    """The largest |y - PyTorch's y| over consecutive calls from the zero state; None where there is no y.

    Raises BenchError if `exact` and it exceeds 1e-4 max(1, max|y|), and for any y that is not finite.
    """
    stream.reset()
    worst = 0.0
    for x, y in zip(xs, expected, strict=True):
        got = stream.call(x)
        if got is None:
            return None
        if got.shape != y.shape:
            raise _disagrees(name, f"an output of shape {y.shape}", str(got.shape))
        error = float(np.max(np.abs(got.astype("float64") - y)))
        worst = max(worst, error) if np.isfinite(error) else float("inf")
    allowed = _TOLERANCE * max(1.0, *(float(np.abs(y).max()) for y in expected))
    if not np.isfinite(worst) or (exact and worst > allowed):
        raise _disagrees(name, f"PyTorch's outputs within {allowed:.1e}", f"an error of {worst:.1e}")
    stream.reset()
    return worst


def check_baselines(
    streams: dict[str, Stream],
    subject: Subject,
    steps: int,
    batch: int,
    seed: int = 0,
    precisions: dict[str, str] | None = None,
) -> dict[str, float | None]:
    """`check` of every stream of a subject; precisions by name, those of ENGINES if left out. All but fp32 are compared only."""
    precisions = precisions or _precisions(streams, "exact")
    xs = subject.inputs(steps, batch, _CHECKED, seed)
    expected = _of_pytorch(subject, xs)
    return {
        name: check(name, stream, xs, expected, exact=precisions[name] == "fp32")
        for name, stream in streams.items()
    }


def _disagrees(name: str, needs: str, got: str) -> BenchError:
    return BenchError(
        name, needs, got, "Its times would mean nothing: leave it out, or report this as a bug."
    )


def _cell(
    engines: dict[str, Engine],
    precisions: dict[str, str],
    subject: Subject,
    steps: int,
    batch: int,
    seconds: float,
    seed: int,
) -> list[dict[str, Any]]:
    streams = {name: engine.open(steps, batch) for name, engine in engines.items()}
    xs = subject.inputs(steps, batch, _CHECKED, seed)
    errors = check_baselines(streams, subject, steps, batch, seed, precisions)
    calls = {name: _fixed(stream.call, xs[0]) for name, stream in streams.items()}
    samples = interleave(calls, seconds=seconds, seed=seed)
    return [
        {
            "name": name,
            "precision": precisions[name],
            "note": streams[name].note,
            "error": errors[name],
            "us": summarise(samples[name]),
            "samples_us": [round(value, 3) for value in samples[name]],
        }
        for name in engines
    ]


def _fixed(call: Callable[[np.ndarray], object], x: np.ndarray) -> Callable[[], object]:
    return lambda: call(x)


def _precisions(engines: Iterable[str], ours: str) -> dict[str, str]:
    """Of each engine: "fp32", which has to agree with PyTorch, or what its weights are stored in."""
    own = "fp32" if ours == "exact" else ours
    return {name: ENGINES[name][1] if name in ENGINES else own for name in engines}


def _agreed(precision: Precision | None, bundle: Bundle | None) -> Precision:
    """The precision to compile with: as asked for, else the bundle's; BenchError where they differ."""
    if precision is not None and precision not in PRECISIONS:
        raise BenchError("precision", f"one of {', '.join(PRECISIONS)}", repr(precision), "Choose one.")
    if bundle is None:
        return precision or "exact"
    if precision not in (None, bundle.manifest.precision):
        raise BenchError(
            "precision", f"that of the bundle, {bundle.manifest.precision}", repr(precision), "Leave it out."
        )
    return bundle.manifest.precision


def _of_pytorch(subject: Subject, xs: list[np.ndarray]) -> list[np.ndarray]:
    import torch

    module, state, ys = subject.module(), None, []
    with torch.inference_mode():
        for x in xs:
            y, state = module(torch.from_numpy(x), state)
            ys.append(y.numpy())
    return ys


def _load(model: str | Path | torch.nn.Module) -> tuple[torch.nn.Module, str, dict[str, float]]:
    """The module, a name for it, and the metrics of its training."""
    if not isinstance(model, str | Path):
        return model.eval(), type(model).__name__, {}
    from tvm_doping import checkpoint
    from tvm_doping.models import load_model

    folder = Path(model)
    if (folder / "bundle.json").is_file():
        raise BenchError(
            str(folder),
            "a run folder or a module: the baselines need the dense weights",
            "a bundle, which holds packed ones only",
            "Give the run folder that it was compiled from, and the bundle beside it.",
        )
    config = checkpoint.read_config(folder)
    found = {key: value for key, value in config.get("metrics", {}).items() if isinstance(value, int | float)}
    return load_model(folder).eval(), str(config.get("recipe", folder.resolve().name)), found


def _compiled(
    bundle: Bundle | None,
    module: torch.nn.Module,
    scope: str,
    target: str,
    batch: int,
    steps: int,
    precision: Precision,
    threads: int,
    name: str,
    echo: Callable[[str], None],
) -> Bundle:
    if bundle is not None and scope == "model":
        return bundle
    from tvm_doping.build import compile

    echo(f"{scope}: compiling {name} for {target}")
    return compile(module, target=target, batch=batch, steps=steps, threads=threads, precision=precision)


def _check_bundle(bundle: Bundle, subject: Subject) -> None:
    """Raise BenchError for a bundle whose inputs or outputs are not the model's."""
    manifest, first = bundle.manifest, subject.layers[0].inputs
    table = None if subject.embedding is None else len(subject.embedding)
    width = subject.layers[-1].hidden if subject.decoder is None else len(subject.decoder[1])
    wanted = [
        f"one input of {first} numbers" if table is None else f"tokens below {table}",
        f"{width} outputs",
    ]
    given = manifest.inputs[0]
    found = [
        f"{len(manifest.inputs)} inputs"
        if len(manifest.inputs) != 1
        else f"one input of {(1, *given.shape)[-1]} numbers"
        if given.below is None
        else f"tokens below {given.below}",
        f"{(1, *manifest.outputs[0].shape)[-1]} outputs",
    ]
    if wanted != found:
        raise BenchError(
            f"bundle {bundle.folder or manifest.name}",
            f"the model's {' and '.join(wanted)}",
            " and ".join(found),
            "Give the bundle that was compiled from this model, or none to compile it now.",
        )


def _facts(bundle: Bundle) -> dict[str, Any]:
    """What the table shows beside the speed, and how each layer was compiled."""
    manifest = bundle.manifest
    return {
        "target": manifest.target.name,
        "compression": manifest.compression.model_dump() if manifest.compression else {},
        "golden_error": manifest.golden_error,
        "layers": [layer.model_dump(exclude={"plan"}, mode="json") for layer in manifest.layers],
    }


def _check_arguments(
    batch: int, steps: tuple[int, ...], baselines: tuple[str, ...], scopes: tuple[str, ...], seconds: float
) -> None:
    def refuse(what: str, needs: str, got: object) -> BenchError:
        return BenchError(what, needs, repr(got), "Change this argument.")

    if batch < 1:
        raise refuse("batch", "at least one stream", batch)
    if not steps or min(steps) < 1:
        raise refuse("steps", "one or more numbers of time steps, each at least 1", steps)
    if seconds <= 0:
        raise refuse("seconds", "a positive time", seconds)
    for scope in scopes or ("",):
        if scope not in SCOPES:
            raise refuse("scopes", f"among {', '.join(SCOPES)}", scope)
    for name in baselines:
        if name not in ENGINES:
            raise refuse("baselines", f"among {', '.join(ENGINES)}", name)
