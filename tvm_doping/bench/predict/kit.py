"""A folder to carry to a device: programs that need no library, and a script that times them and writes results.json."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvm_doping.bench import variants
from tvm_doping.bench.cells import Axes, Variant, filtered
from tvm_doping.bench.predict import model as cost_model
from tvm_doping.bench.predict import program
from tvm_doping.bench.predict.devices import Device, device_of
from tvm_doping.bench.predict.program import Kernel
from tvm_doping.bench.predict.subject import formats_of, gemv_int8, kernels_of
from tvm_doping.errors import InvalidInput
from tvm_doping.places import write_files
from tvm_doping.targets import resolve

AXES: Axes = {
    "H": (650,),
    "compression": (10, 25),
    "pattern": ("unstructured", "block16"),
    "batch": (1,),
    "T": (1, 35),
    "threads": (1,),
}
# Bytes of the buffers whose reading shows the bandwidths: in the L1, in the L2, in memory.
_READ = (16 << 10, 192 << 10, 64 << 20)
_SCRIPT = Path(__file__).with_name("measure_kit.py")


def write_kit(
    folder: Path,
    target: str,
    *,
    only: Sequence[str] = (),
    axes: Axes | None = None,
    echo: Callable[[str], None] = print,
) -> Path:
    """Build programs for a target and predict them; returns the script to run on the device, `python3 run.py`.

    axes: of the models, as in predict.AXES, whose values `only` picks from. The folder must not exist or be empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InvalidInput(f"the kit's folder {folder}", "not to exist", "one with files", "Name another.")
    device, chosen = device_of(target), filtered(axes or AXES, only)
    cells = []
    for name, kernels, T in _cells(chosen, device):
        place = folder / "cells" / name
        program.build(kernels, resolve(device.target), place, mark=False)
        cell: dict[str, Any] = {"name": name, "T": T, "bytes": sum(k.weight_bytes for k in kernels)}
        if not name.startswith("read"):
            marked = program.build(kernels, resolve(device.target), place, mark=True)
            phases = cost_model.predict(marked, kernels, device, steps=T)
            cell |= {"predicted_us": round(sum(p.us for p in phases), 2), "formats": formats_of(kernels)}
        for path in place.iterdir():
            if path.name not in ("plain", "data.bin"):
                path.unlink()
        cells.append(cell)
        echo(f"{name}: {cell.get('predicted_us', '')}")
    facts = {"format_version": 1, "device": device.to_dict(), "cells": cells}
    write_files(folder, {"kit.json": json.dumps(facts, indent=1) + "\n"})
    return Path(shutil.copy(_SCRIPT, folder / "run.py"))


def _cells(axes: Axes, device: Device) -> list[tuple[str, list[Kernel], int]]:
    target, found = resolve(device.target), [(f"read-{size >> 10}K", [_read(size)], 1) for size in _READ]
    for H in axes["H"]:
        dense = variants.dense(H).module()
        found.append((f"H{H}-T1-int8", gemv_int8(dense), 1))
        for T in axes["T"]:
            found.append((f"H{H}-T{T}-dense", kernels_of(dense, target, steps=T, batch=1, format="dense"), T))
            for pattern in axes["pattern"]:
                for compression in axes["compression"]:
                    made = variants.doped(H, Variant(compression=compression, pattern=pattern))
                    kernels = kernels_of(made, target, steps=T, batch=1)
                    found.append((f"H{H}-T{T}-{compression}x-{pattern}", kernels, T))
    return found


def _read(size: int) -> Kernel:
    arguments = {"x": np.ones(size // 8, "uint64"), "y": np.zeros(1, "uint64")}
    return Kernel(
        name="read_all", function=Path(__file__).with_name("read_all.c"), arguments=arguments, weights=("x",)
    )
