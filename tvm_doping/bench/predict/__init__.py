"""Speed without the hardware: how long a step takes on a core, from its instructions, its data and a model of the core.

    results = predict.run("cortex-a72", only=["H=650,compression=10"])
    predict.write(results, "results/predict/cortex-a72")

Importing this loads torch and TVM.
"""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tvm_doping.bench import variants
from tvm_doping.bench.cells import Axes, Variant, filtered
from tvm_doping.bench.predict import model as cost_model
from tvm_doping.bench.predict import program
from tvm_doping.bench.predict.devices import Device, device_of
from tvm_doping.bench.predict.program import Kernel
from tvm_doping.bench.predict.report import markdown
from tvm_doping.bench.predict.subject import formats_of, gemv_int8, kernels_of
from tvm_doping.bench.predict.tools import check_version, llvm_version
from tvm_doping.errors import DopingError
from tvm_doping.places import write_files
from tvm_doping.targets import resolve

__all__ = ["AXES", "cell", "markdown", "of_model", "run", "write"]

FORMAT_VERSION = 1
DENSE, INT8 = "dense", "gemv-int8"
# The sizes of Thakker et al. (MLSys 2021): medium and large language models, 10 to 25 times smaller.
AXES: Axes = {
    "H": (650, 1500),
    "compression": (10, 15, 20, 25),
    "pattern": ("unstructured", "block16"),
    "batch": (1,),
    "T": (1,),
    "threads": (1,),
}


def run(
    target: str,
    *,
    only: Sequence[str] = (),
    axes: Axes | None = None,
    precision: Any = "exact",
    echo: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Predict two doped LSTM layers (I = H) of each size on a target's device, beside the same layers dense, in fp32 and in int8.

    only: as of bench-matrix, "H=650,compression=10/25". Returns what predict.json holds: the device with its sources, the tools,
    and a cell for each model with all its phases.
    """
    device = device_of(target)
    check_version(device)
    chosen = filtered(axes or AXES, only)
    results = _head(device)
    for H in chosen["H"]:
        for T in chosen["T"]:
            for batch in chosen["batch"]:
                results["cells"] += _group(H, T, batch, chosen, device, precision, echo)
    return results


def of_model(
    model: torch.nn.Module,
    target: str,
    *,
    steps: Sequence[int] = (1,),
    batch: int = 1,
    precision: Any = "exact",
) -> dict[str, Any]:
    """The same of the LSTM layers of one model."""
    device = device_of(target)
    check_version(device)
    results = _head(device)
    for T in steps:
        for name, format in (("chosen", None), (DENSE, DENSE)):
            kernels = kernels_of(
                model, resolve(device.target), steps=T, batch=batch, format=format, precision=precision
            )
            made = cell(kernels, device, steps=T)
            results["cells"].append({"model": name, "T": T, "batch": batch, **made})
        if T == batch == 1:
            results["cells"].append({"model": INT8, "T": T, "batch": batch, **cell(gemv_int8(model), device)})
    return results


def cell(kernels: Sequence[Kernel], device: Device, *, steps: int = 1) -> dict[str, Any]:
    """The predicted microseconds of a round of some kernels, and of each phase of it."""
    with tempfile.TemporaryDirectory(prefix="tvm-doping-") as folder:
        built = program.build(kernels, resolve(device.target), Path(folder), mark=True)
        phases = cost_model.predict(built, kernels, device, steps=steps)
    size = sum(kernel.weight_bytes for kernel in kernels)
    return {
        "formats": formats_of(kernels),
        "us": round(sum(phase.us for phase in phases), 3),
        "bytes": size,
        "level": device.level(size),
        "phases": [phase.to_dict() for phase in phases],
    }


def write(results: dict[str, Any], folder: str | Path) -> dict[str, Path]:
    """Write predict.json and predict.md into the folder; returns their paths."""
    texts = {"predict.json": json.dumps(results, indent=1) + "\n", "predict.md": markdown(results) + "\n"}
    return write_files(Path(folder), texts)


def _group(
    H: int, T: int, batch: int, axes: Axes, device: Device, precision: Any, echo: Callable[[str], None]
) -> list[dict[str, Any]]:
    target, where = resolve(device.target), {"H": H, "T": T, "batch": batch}
    dense = variants.dense(H).module()
    found = []

    def add(name: str, kernels: Sequence[Kernel]) -> None:
        found.append({**where, "model": name, **cell(kernels, device, steps=T)})
        echo(f"H {H}, T {T}, batch {batch}, {name}: {found[-1]['us']:.4g} us by {found[-1]['formats']}")

    add(DENSE, kernels_of(dense, target, steps=T, batch=batch, format=DENSE))
    if T == batch == 1:
        add(INT8, gemv_int8(dense))
    for pattern in axes["pattern"]:
        for compression in axes["compression"]:
            variant = Variant(compression=compression, pattern=pattern)
            try:
                made = variants.doped(H, variant)
                kernels = kernels_of(made, target, steps=T, batch=batch, precision=precision)
            except DopingError as error:  # a size at which the pattern does not exist
                echo(f"H {H}, {variant.name}: {' '.join(str(error).split())}")
                continue
            add(variant.name, kernels)
    return found


def _head(device: Device) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device.to_dict(),
        "llvm": llvm_version(),
        "cells": [],
    }
