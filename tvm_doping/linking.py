"""From lowered functions to lib.so, and its comparison with PyTorch."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

from tvm_doping._runtime import load_cuda_runtime
from tvm_doping._threads import open_pool
from tvm_doping._tvm import relax, tvm
from tvm_doping.comparing import difference
from tvm_doping.errors import DopingError
from tvm_doping.frontend import Signature
from tvm_doping.kernels.cuda.image import images
from tvm_doping.kernels.cuda.lowering import CUDA_PIPELINE
from tvm_doping.kernels.cuda.nvcc import fatbin
from tvm_doping.kernels.lowering import TIR_PIPELINE
from tvm_doping.kernels.pool import export
from tvm_doping.passes import Context
from tvm_doping.references import Arrays
from tvm_doping.targets import Target


def build_library(
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
    with tempfile.TemporaryDirectory(prefix="tvm-doping-") as folder, images_of(machine) as pack_imports:
        path = Path(folder) / "lib.so"
        executable = relax.build(mod, machine.tvm(), tir_pipeline=pipeline_of(machine))
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


def images_of(machine: Target) -> Any:
    """What makes the images of a GPU's kernels, while the module is built; nothing for a CPU."""
    return images(lambda source: fatbin(source, machine.gpu)) if machine.gpu else nullcontext()


def pipeline_of(machine: Target) -> Any:
    """How functions are lowered for a target, as TVM takes it."""
    return CUDA_PIPELINE if machine.gpu else TIR_PIPELINE


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
