"""From a trained model to a bundle: import, passes, code, and a comparison with PyTorch."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tvm_doping import __version__, checkpoint
from tvm_doping._threads import MOST, check_threads
from tvm_doping.bundle import Bundle
from tvm_doping.cross import compiler
from tvm_doping.errors import InvalidInput
from tvm_doping.frontend import Signature
from tvm_doping.kernels.cuda.nvcc import find_nvcc
from tvm_doping.kernels.sparse import ROUNDING
from tvm_doping.linking import build_library
from tvm_doping.manifest import bytes_by_layer
from tvm_doping.passes import RECALLED, REPORT, Context, Pack, pipeline, run_passes
from tvm_doping.reading import Factory, Model, ReadModel, read_model
from tvm_doping.records import Book
from tvm_doping.references import Arrays
from tvm_doping.rounding import Rounded, measure
from tvm_doping.sparsity import FORMATS
from tvm_doping.sparsity.values import PRECISIONS, Precision
from tvm_doping.targets import Target, missing_features, resolve, several

_PACKAGES = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi", "torch": "torch", "numpy": "numpy"}


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What a bundle is made of.

    library       lib.so, whose VM function is main(*inputs, *state, weights) -> (*outputs, *new state), always a tuple;
                  empty where it was not asked for;
    weights       in the order of main's last parameter;
    layers        for each LSTM layer and direction and each linear layer, what the manifest says of it;
    compression   of the whole model, "by_parameters" and "by_bytes";
    metrics       what the run folder reported; {} for a bare model;
    golden        one run by PyTorch: "input.NAME", "state.NAME", "output.NAME", "new_state.NAME", and for outputs that are
                  indices "scores.NAME", the logits that they were chosen by;
    threads       how many of a session it is made fast for;
    golden_error  the largest |compiled - PyTorch| of all comparisons; NaN where this machine cannot run the code.
    module        the module after all passes: main, and the kernels that it calls;
    records       the tuning records used, in words.
    precision     how low stored values may go; precision_error: what it costs, by output and state. Unless it is exact,
                  golden and golden_error are those of the model with its weights as they are stored.
    """

    library: bytes
    module: Any
    records: tuple[str, ...]
    weights: dict[str, np.ndarray]
    signature: Signature
    target: Target
    layers: tuple[dict[str, Any], ...]
    compression: dict[str, float]
    metrics: dict[str, Any]
    golden: Arrays
    golden_error: float
    precision: Precision
    precision_error: dict[str, dict[str, float]]
    tolerance: float
    threads: int
    versions: dict[str, str]


def compile(
    model: Model,
    target: str | Target | Sequence[str | Target] = "auto",
    *,
    factory: Factory | None = None,
    example: Any = None,
    batch: int = 1,
    steps: int = 1,
    head: str | None = None,
    threads: int = 1,
    dump: str | os.PathLike[str] | None = None,
    precision: Precision = "exact",
    force: Mapping[str, Any] | None = None,
    records: str | os.PathLike[str] | None = "auto",
    tolerance: float = 1e-5,
) -> Bundle:
    """Compile a trained model (a run folder, an nn.Module or an ExportedProgram) into a bundle.

    target     a name, or "auto": this machine; or several: the bundle then holds code for each, and the best that a CPU can run
               is taken where it is loaded;
    factory    what makes the dense model, or its name, of a run folder of `compress` whose model is the user's own (`load_model`);
    example    inputs to trace the model with, a tuple; guessed from the model if left out;
    batch      streams side by side to be fast for; any number runs, with the same results beyond rounding;
    steps      time steps of a call to be fast for (1: a stream, step by step); any number runs;
    head       what is wanted of the model's first output, its logits (..., V), and returned in their place: "argmax",
               "log_softmax", "softmax" or "top_k:K" (values, then indices), computed in the kernel of the layer that makes them;
    threads    threads of a session to be fast for: layers that are worth it share their work (with 1: none); any number then
               runs, with the same results;
    dump       a folder that gets the IR after each pass; of several targets a folder in it for each;
    precision  how low the stored values of weights may go, "exact" (fp32), "fp16", "bf16" or "int8"; arithmetic is fp32
               whatever is stored, but for the formats perm64 and mma16 and the dot products of Arm cores, which round inputs
               as well; what it costs is measured and stands in the manifest (`precision_error`);
    force      {"format": name}: the sparse format of every weight that has an S; {"structure": "dense"}: weights as
               they are, no structure is looked for; {"structure": "kept"}: none is multiplied out, even where dense is faster;
    records    tuning records to use, where one is near a layer and nothing is forced: "auto" those that ship and those that
               `tvm-doping tune` wrote here, a folder, or None: every choice is predicted;
    tolerance  largest difference from PyTorch, relative to max(1, largest output); of a precision other than exact, from
               the model with its weights as they are stored. It grows to what the precision costs where inputs are rounded
               as well: numbers are not always rounded the same way.

    Raises UnsupportedModel for what cannot be imported, ScheduleError for a forced choice that no schedule
    accepts, DopingError where compiled code and PyTorch differ by more than the tolerance.
    """
    targets = several(target)
    if not isinstance(model, str | os.PathLike):
        about: dict[str, Any] = {"name": type(model).__name__}
    else:
        config = checkpoint.read_config(model)
        about = {
            "name": Path(model).resolve().name,
            "vocabulary": tuple(config.get("vocabulary") or ()),
            "tokens": config.get("tokens"),
            "labels": tuple(config.get("labels") or ()),
            "columns": tuple(config.get("columns") or ()),
        }
    bundles: list[Bundle] = []
    source: Model | ReadModel = model
    if len(targets) > 1:  # what is missing for one of them is told before the first is built
        _check(batch, steps, threads, tolerance, precision, force or {})
        for machine in targets:
            compiler(machine)
        source = read_model(model, factory=factory, example=example, head=head, tolerance=tolerance)
    for machine in targets:
        compiled = lower(
            source,
            machine,
            factory=factory,
            example=example,
            batch=batch,
            steps=steps,
            head=head,
            threads=threads,
            dump=dump if dump is None or len(targets) == 1 else Path(dump) / machine.name,
            precision=precision,
            force=force,
            records=records,
            tolerance=tolerance,
        )
        bundles.append(Bundle.from_compiled(compiled, **about))
    return bundles[0] if len(bundles) == 1 else Bundle.join(bundles)


def lower(
    model: Model | ReadModel,
    target: str | Target = "auto",
    *,
    factory: Factory | None = None,
    example: Any = None,
    batch: int = 1,
    steps: int = 1,
    head: str | None = None,
    threads: int = 1,
    dump: str | os.PathLike[str] | None = None,
    precision: Precision = "exact",
    force: Mapping[str, Any] | None = None,
    records: str | os.PathLike[str] | None = "auto",
    tolerance: float = 1e-5,
    golden: Callable[[Signature], tuple[int, int]] | None = None,
    library: bool = True,
) -> Compiled:
    """What `compile` puts into the bundle.

    model    or what `read_model` made of it, with the same factory, example, head, tolerance and golden;
    golden   the (T, N) of its golden run, else those of the example;
    library  False: the library is only made where this machine can run it, to be compared with PyTorch.
    """
    _check(batch, steps, threads, tolerance, precision, force or {})
    book = Book.of(records)
    machine = resolve(target)
    runs_here = not missing_features(machine.features)
    # before what takes seconds: it may be missing
    linker = compiler(machine) if library or runs_here else None
    if machine.gpu:
        find_nvcc()
    if not isinstance(model, ReadModel):
        model = read_model(
            model, factory=factory, example=example, head=head, tolerance=tolerance, golden=golden
        )
    imported = model.imported
    context = Context(
        target=machine,
        batch=batch,
        steps=steps,
        threads=threads,
        precision=precision,
        force=force,
        records=book,
        names=imported.names,
    )
    packed: list[Any] = []
    mod = run_passes(
        imported.mod,
        pipeline(context),
        dump,
        observe=lambda run, after: packed.append(after) if isinstance(run, Pack) else None,
    )
    runs = model.runs
    weights = {name: value.numpy() for name, value in context.weights.items()}
    layers = _layers(mod, weights)
    precision_error: dict[str, dict[str, float]] = {}
    if precision != "exact":
        rounded = Rounded(packed[0], imported.signature, machine)
        runs = [rounded(run) for run in model.long_runs]
        precision_error = measure(model.long_runs, runs)
        if any(map(_rounds_inputs, layers)):
            # A number that differs in its last bit may be rounded the other way: at most what rounding all of them does.
            tolerance = max(tolerance, *(cost["max_abs"] for cost in precision_error.values()))
    made, error = b"", math.nan
    if library or runs_here:
        made, error = build_library(mod, context, imported.signature, runs, tolerance, linker, runs_here)
    return Compiled(
        library=made,
        module=mod,
        records=_records(mod, layers),
        weights=weights,
        signature=imported.signature,
        target=machine,
        layers=layers,
        compression=_compression(layers, weights, model.repeated if machine.gpu else (0, 0)),
        metrics=model.metrics,
        golden=runs[0],
        golden_error=error,
        precision=precision,
        precision_error=precision_error,
        tolerance=tolerance,
        threads=threads,
        versions={
            **{name: metadata.version(package) for name, package in _PACKAGES.items()},
            "python": platform.python_version(),
            "tvm_doping": __version__,
        },
    )


def _check(
    batch: int, steps: int, threads: int, tolerance: float, precision: str, force: Mapping[str, Any]
) -> None:
    if batch < 1:
        raise InvalidInput("batch", "at least 1", str(batch), "Name the number of streams to be fast for.")
    if steps < 1:
        raise InvalidInput("steps", "at least 1", str(steps), "Name the time steps of a call to be fast for.")
    check_threads(threads, False, MOST, "the bundle")
    if not 0 <= tolerance < math.inf:
        raise InvalidInput("tolerance", "a finite number, at least 0", f"{tolerance}", "The default is 1e-5.")
    if precision not in PRECISIONS:
        raise InvalidInput("precision", f"one of {', '.join(PRECISIONS)}", repr(precision), "Choose one.")
    _check_force(force)


def _check_force(force: Mapping[str, Any]) -> None:
    """Names and values that nothing would look at are errors: a typing error must not pass for a choice."""
    known = {"format": tuple(FORMATS), "structure": ("dense", "kept")}
    for name, value in force.items():
        if name not in known:
            raise InvalidInput("force", f"one of {', '.join(known)}", repr(name), "Correct the name.")
        if value not in known[name]:
            raise InvalidInput(
                f"force {name}", f"one of {', '.join(known[name])}", repr(value), "Correct the value."
            )


def _layers(mod: Any, weights: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], ...]:
    functions = (f for _, f in mod.functions_items() if f.attrs and REPORT in f.attrs)
    layers = sorted((json.loads(f.attrs[REPORT]) for f in functions), key=lambda layer: layer["name"])
    stored = bytes_by_layer([layer["name"] for layer in layers], weights)
    return tuple({**layer, "bytes": stored[layer["name"]]} for layer in layers)


def _rounds_inputs(layer: Mapping[str, Any]) -> bool:
    products = [part for part in layer.get("plan", {}).values() if isinstance(part, dict)]
    return any(part.get("sparse") in ROUNDING or part.get("dot") for part in products)


def _records(mod: Any, layers: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    recalled = [f.attrs[RECALLED] for _, f in mod.functions_items() if f.attrs and RECALLED in f.attrs]
    used = {layer.get("plan", {}).get("record", "") for layer in layers} - {""}
    return tuple(sorted(used.union(*(json.loads(str(text)) for text in recalled))))


def _compression(
    layers: tuple[dict[str, Any], ...], weights: Mapping[str, np.ndarray], repeated: tuple[int, int]
) -> dict[str, float]:
    """Of the whole model: weights of no layer, such as an embedding, are stored as they were.

    A tied weight counts once, as a dense model learns it once and stores it once; what is stored here, twice at times, counts as it
    is. repeated: (dense entries, parameters) of doped weights that several layers share, where no layer says that it is tied: on
    a GPU, which looks rows up in a dense table beside the layers.
    """
    own = [layer for layer in layers if not layer["plan"].get("tied")]
    stored = sum(layer["bytes"] for layer in layers)
    total = {
        key: sum(layer[key] for layer in own) for key in ("parameters", "dense_parameters", "dense_bytes")
    }
    other = sum(array.nbytes for array in weights.values()) - stored
    others = other // 4  # fp32
    total["dense_parameters"] -= repeated[0]
    total["dense_bytes"] -= 4 * repeated[0]
    total["parameters"] -= repeated[1]
    return {
        "by_parameters": (total["dense_parameters"] + others) / max(1, total["parameters"] + others),
        "by_bytes": (total["dense_bytes"] + other) / max(1, stored + other),
    }
