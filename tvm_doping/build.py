"""From a trained model to a bundle: import, passes, code, and a comparison with PyTorch."""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi
from torch import nn
from torch.export import ExportedProgram

from tvm_doping import __version__, checkpoint
from tvm_doping._runtime import load_cuda_runtime
from tvm_doping._threads import MOST, check_threads, open_pool
from tvm_doping._tvm import relax, tvm
from tvm_doping.bundle import Bundle
from tvm_doping.comparing import difference
from tvm_doping.cross import compiler
from tvm_doping.errors import DopingError, InvalidInput
from tvm_doping.frontend import Imported, Signature, headed, import_model
from tvm_doping.heads import Head
from tvm_doping.kernels.cuda.image import images
from tvm_doping.kernels.cuda.lowering import CUDA_PIPELINE
from tvm_doping.kernels.cuda.nvcc import fatbin, find_nvcc
from tvm_doping.kernels.lowering import TIR_PIPELINE
from tvm_doping.kernels.pool import export
from tvm_doping.kernels.sparse import ROUNDING
from tvm_doping.models import load_model
from tvm_doping.models.checks import check_model
from tvm_doping.models.doping import doped_weights, original
from tvm_doping.passes import RECALLED, REPORT, Context, Pack, pipeline, run_passes
from tvm_doping.records import Book
from tvm_doping.references import SEED, Arrays, reference_run, reference_runs
from tvm_doping.rounding import Rounded, long_inputs, measure
from tvm_doping.sparsity import FORMATS
from tvm_doping.sparsity.values import PRECISIONS, Precision
from tvm_doping.targets import Target, missing_features, resolve, several

Model = nn.Module | ExportedProgram | str | os.PathLike[str]
Factory = Callable[..., nn.Module] | str

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
               whatever is stored, but for the format perm64; what it costs is measured and stands in the manifest
               (`precision_error`);
    force      {"format": name}: the sparse format of every weight that has an S; {"structure": "dense"}: weights as
               they are, no structure is looked for; {"structure": "kept"}: none is multiplied out, even where dense is faster;
    records    tuning records to use, where one is near a layer and nothing is forced: "auto" those that ship and those that
               `tvm-doping tune` wrote here, a folder, or None: every choice is predicted;
    tolerance  largest difference from PyTorch, relative to max(1, largest output); of a precision other than exact, from
               the model with its weights as they are stored. It grows to what the precision costs where the format perm64,
               which rounds x as well, was chosen: numbers are not always rounded the same way.

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
    bundles = []
    for machine in targets:
        compiled = lower(
            model,
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
    model: Model,
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

    golden   the (T, N) of its golden run, else those of the example;
    library  False: the library is only made where this machine can run it, to be compared with PyTorch.
    """
    if batch < 1:
        raise InvalidInput("batch", "at least 1", str(batch), "Name the number of streams to be fast for.")
    if steps < 1:
        raise InvalidInput("steps", "at least 1", str(steps), "Name the time steps of a call to be fast for.")
    check_threads(threads, False, MOST, "the bundle")
    if not 0 <= tolerance < math.inf:
        raise InvalidInput("tolerance", "a finite number, at least 0", f"{tolerance}", "The default is 1e-5.")
    if precision not in PRECISIONS:
        raise InvalidInput("precision", f"one of {', '.join(PRECISIONS)}", repr(precision), "Choose one.")
    wanted = None if head is None else Head.parse(head)
    _check_force(force or {})
    book = Book.of(records)
    metrics: dict[str, Any] = {}
    if isinstance(model, str | os.PathLike):
        metrics = dict(checkpoint.read_config(model).get("metrics") or {})
        model = load_model(model, factory)
    if isinstance(model, nn.Module | ExportedProgram):
        check_model(model)
    repeated = _repeated(model) if isinstance(model, nn.Module) else (0, 0)
    machine = resolve(target)
    runs_here = not missing_features(machine.features)
    # before what takes seconds: it may be missing
    linker = compiler(machine) if library or runs_here else None
    if machine.gpu:
        find_nvcc()
    imported = _imported(model, example, wanted, tolerance)
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
    runs = reference_runs(imported, golden and golden(imported.signature))
    layers = _layers(mod)
    precision_error: dict[str, dict[str, float]] = {}
    if precision != "exact":
        rounded = Rounded(packed[0], imported.signature, machine)
        inputs = long_inputs(imported.signature, runs[0], SEED)
        exact = runs if inputs is None else [*runs, reference_run(imported, inputs)]
        runs = [rounded(run) for run in exact]
        precision_error = measure(exact, runs)
        if any(ROUNDING.intersection(layer["format"].split(", ")) for layer in layers):
            # A number that differs in its last bit may be rounded the other way: at most what rounding all of them does.
            tolerance = max(tolerance, *(cost["max_abs"] for cost in precision_error.values()))
    made, error = b"", math.nan
    if library or runs_here:
        made, error = _library(mod, context, imported.signature, runs, tolerance, linker, runs_here)
    weights = {name: value.numpy() for name, value in context.weights.items()}
    return Compiled(
        library=made,
        module=mod,
        records=_records(mod, layers),
        weights=weights,
        signature=imported.signature,
        target=machine,
        layers=layers,
        compression=_compression(layers, weights, repeated),
        metrics=metrics,
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


def _library(
    mod: Any,
    context: Context,
    signature: Signature,
    runs: list[Arrays],
    tolerance: float,
    linker: str | None,
    runs_here: bool,
) -> tuple[bytes, float]:
    """Generate and link the code; also the largest error in `runs`, NaN where this machine cannot run it."""
    machine, error = context.target, math.nan
    # main stays bytecode: a session reads from it which kernels a step calls, and calls them without the VM
    with tempfile.TemporaryDirectory(prefix="tvm-doping-") as folder, _images(machine) as pack_imports:
        path = Path(folder) / "lib.so"
        pipeline_name = CUDA_PIPELINE if machine.gpu else TIR_PIPELINE
        executable = relax.build(mod, machine.tvm(), tir_pipeline=pipeline_name)
        export(executable, mod, path, linker, pack_imports)
        # What is compared is the library itself: running the executable would generate all its code once more.
        if runs_here:
            if machine.gpu:
                load_cuda_runtime()
            loaded = tvm.runtime.load_module(str(path))
            open_pool(loaded, 1, False)
            device = tvm.cuda() if machine.gpu else tvm.cpu()
            error = _compare(signature, loaded, context.weights, runs, tolerance, device)
        return path.read_bytes(), error


def _images(machine: Target) -> Any:
    """What makes the images of a GPU's kernels, while the module is built; nothing for a CPU."""
    return images(lambda source: fatbin(source, machine.gpu)) if machine.gpu else nullcontext()


def _imported(model: Any, example: Any, head: Head | None, tolerance: float) -> Imported:
    if head is not None and isinstance(model, ExportedProgram):
        raise InvalidInput(
            "head",
            "a model that it can be put into",
            "an ExportedProgram",
            "Pass the nn.Module, or apply the function in its forward before exporting it.",
        )
    with headed(model, head) if isinstance(model, nn.Module) else nullcontext():
        return import_model(model, example, tolerance=tolerance)


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


def _layers(mod: Any) -> tuple[dict[str, Any], ...]:
    functions = (f for _, f in mod.functions_items() if f.attrs and REPORT in f.attrs)
    return tuple(sorted((json.loads(f.attrs[REPORT]) for f in functions), key=lambda layer: layer["name"]))


def _records(mod: Any, layers: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    recalled = [f.attrs[RECALLED] for _, f in mod.functions_items() if f.attrs and RECALLED in f.attrs]
    used = {layer.get("plan", {}).get("record", "") for layer in layers} - {""}
    return tuple(sorted(used.union(*(json.loads(str(text)) for text in recalled))))


def _repeated(model: nn.Module) -> tuple[int, int]:
    """(dense entries, parameters) of doped weights that several layers share, for each layer beyond the first."""
    seen: set[nn.Module] = set()
    dense = parameters = 0
    for _, module, name, weight in doped_weights(model, shared=True):
        if weight in seen:
            dense += weight.mask.numel()
            parameters += weight.structure(original(module, name)).parameters
        seen.add(weight)
    return dense, parameters


def _compression(
    layers: tuple[dict[str, Any], ...], weights: Mapping[str, np.ndarray], repeated: tuple[int, int]
) -> dict[str, float]:
    """Of the whole model: weights of no layer, such as an embedding, are stored as they were.

    A dense model stores a tied weight once and learns it once; what is stored here, twice at times, counts as it is.
    """
    total = {
        key: sum(layer[key] for layer in layers)
        for key in ("parameters", "dense_parameters", "bytes", "dense_bytes")
    }
    other = sum(array.nbytes for array in weights.values()) - total["bytes"]
    others = other // 4  # fp32
    total["dense_parameters"] -= repeated[0]
    total["dense_bytes"] -= 4 * repeated[0]
    total["parameters"] -= repeated[1]
    return {
        "by_parameters": (total["dense_parameters"] + others) / max(1, total["parameters"] + others),
        "by_bytes": (total["dense_bytes"] + other) / max(1, total["bytes"] + other),
    }


def _compare(
    signature: Signature,
    library: Any,
    weights: Mapping[str, Any],
    runs: list[Arrays],
    tolerance: float,
    device: Any,
) -> float:
    """The largest |compiled - PyTorch|; DopingError where it exceeds the tolerance."""
    main = relax.VirtualMachine(library, device)["main"]
    there = [tvm.runtime.tensor(value.numpy(), device=device) for value in weights.values()]
    names = [f"output.{spec.name}" for spec in signature.outputs]
    names += [f"new_state.{spec.name}" for spec in signature.state]
    worst = 0.0
    for run in runs:
        inputs = [run[f"input.{spec.name}"] for spec in signature.inputs]
        inputs += [run[f"state.{spec.name}"] for spec in signature.state]
        given = [tvm.runtime.tensor(np.ascontiguousarray(array), device=device) for array in inputs]
        results = main(*given, tvm_ffi.Array(there))
        for name, result in zip(names, results, strict=True):
            got, wanted = result.numpy(), run[name]
            scores = run.get(f"scores.{name.removeprefix('output.')}")
            error, allowed = (
                difference(got, wanted, tolerance, scores) if got.shape == wanted.shape else (math.inf, 0.0)
            )
            if not error <= allowed:
                raise DopingError(
                    f"{name} of the compiled model, inputs of {[array.shape for array in inputs]}",
                    f"PyTorch's values within {allowed:.3g}",
                    f"{error:.3g} off"
                    if got.shape == wanted.shape
                    else f"shape {got.shape}, not {wanted.shape}",
                    "Raise the tolerance if that is only rounding; else force another format, and report it.",
                )
            worst = max(worst, error)
    return worst
