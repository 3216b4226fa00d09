"""The same prediction where it can be checked: on this machine, against the clock, in every format and at several sizes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvm_doping.bench import variants
from tvm_doping.bench.cells import Variant
from tvm_doping.bench.machine import describe
from tvm_doping.bench.predict import model as cost_model
from tvm_doping.bench.predict import program
from tvm_doping.bench.predict.devices import Device, measured
from tvm_doping.bench.predict.program import Kernel
from tvm_doping.bench.predict.subject import gemv_int8, kernels_of
from tvm_doping.places import write_files
from tvm_doping.targets import resolve

# (format, precision); of S that is stored in blocks the pattern is theirs.
WAYS = (
    ("csr", "exact"),
    ("sell16", "exact"),
    ("perm8", "exact"),
    ("block16", "exact"),
    ("block16", "fp16"),
    ("dense", "exact"),
    ("gemv-int8", "int8"),
)
SIZES = ((128, 1), (128, 35), (256, 1), (256, 35), (650, 1), (650, 35), (1500, 1))
_COMPRESSION = 10
_ROUNDS = 5


def prepare(
    folder: Path,
    device: Device,
    *,
    ways: Sequence[tuple[str, str]] = WAYS,
    sizes: Sequence[tuple[int, int]] = SIZES,
    echo: Callable[[str], None] = print,
) -> None:
    """Build the programs of all cells, one to trace and one to time, and trace them. What the folder has is not done again."""
    target = resolve(device.target)
    for H, T in sizes:
        for format, precision in ways:
            if format == "gemv-int8" and T > 1:
                continue
            where = folder / f"{format}-{precision}-H{H}-T{T}"
            if (where / "cell.json").is_file():
                continue
            kernels = _kernels(H, T, format, precision, target)
            marked = program.build(kernels, target, where, mark=True)
            program.build(kernels, target, where, mark=False)
            phases = [p.to_dict() for p in cost_model.predict(marked, kernels, device, steps=T)]
            cell = {"format": format, "precision": precision, "H": H, "T": T, "phases": phases}
            write_files(where, {"cell.json": json.dumps(cell)})
            echo(f"{where.name}: {sum(p['us'] for p in phases):.4g} us")


def time(folder: Path, device: Device, *, seconds: float = 0.3) -> dict[str, Any]:
    """Time every prepared cell, in turn, five times, and compare: measured and predicted microseconds, and their ratio.

    Of the five medians the least counts: what is predicted is a core that nobody disturbs.

    The device's clock and bandwidths are measured first, as the machine has them now.
    """
    from tvm_doping.bench import ceilings

    target = resolve(device.target)
    found = ceilings.measure(target)
    device = measured(device, found.gbs, found.gmacs, found.lanes)
    cells = sorted(folder.glob("*/cell.json"))
    samples: dict[Path, list[float]] = {path: [] for path in cells}
    for _ in range(_ROUNDS):
        for path in cells:
            here = program.Program(
                path=path.with_name("plain"),
                data=path.with_name("data.bin"),
                phases=(),
                architecture=target.arch,
            )
            samples[path].append(program.run(here, seconds)[0])
    rows = [_row(json.loads(path.read_text()), min(samples[path]), samples[path], device) for path in cells]
    return {"machine": describe(), "device": device.to_dict(), "cells": rows, "error": errors(rows)}


def errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How far predicted times are from measured ones: the typical factor (exp of the mean |log ratio|), the worst, and the share
    within 25 %; over all, and of each format."""

    def of(some: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        logs = [abs(math.log(row["ratio"])) for row in some]
        return {
            "cells": len(logs),
            "typical": round(math.exp(sum(logs) / len(logs)), 3),
            "worst": round(math.exp(max(logs)), 3),
            "within_25_percent": round(sum(log <= math.log(1.25) for log in logs) / len(logs), 3),
        }

    names = sorted({f"{row['format']} {row['precision']}" for row in rows})
    each = {name: of([r for r in rows if f"{r['format']} {r['precision']}" == name]) for name in names}
    return {"all": of(rows), **each}


def markdown(results: Mapping[str, Any]) -> str:
    """The errors and a row a cell."""
    lines = ["| format | cells | typical factor off | worst | within 25 % |", "|---|---|---|---|---|"]
    for name, e in results["error"].items():
        lines.append(
            f"| {name} | {e['cells']} | {e['typical']:.2f} | {e['worst']:.2f} | {e['within_25_percent']:.0%} |"
        )
    lines += [
        "",
        "| H | T | format | measured µs | predicted µs | predicted / measured |",
        "|---|---|---|---|---|---|",
    ]
    for r in sorted(results["cells"], key=lambda r: (r["H"], r["T"], r["format"])):
        name = r["format"] if r["precision"] in ("exact", "int8") else f"{r['format']} {r['precision']}"
        lines.append(
            f"| {r['H']} | {r['T']} | {name} | {r['us']:.4g} | {r['predicted']:.4g} | {r['ratio']:.2f} |"
        )
    device = results["device"]
    levels = ", ".join(f"{name} {rate:.3g}" for name, _, rate in device["levels"])
    lines += [
        "",
        f"{results['machine']['cpu']}, {device['ghz']:.3g} GHz; GB/s: {levels}, memory {device['memory']:.3g}",
    ]
    return "\n".join(lines)


def write(results: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Write check.json and check.md into the folder; returns their paths."""
    texts = {"check.json": json.dumps(results, indent=1) + "\n", "check.md": markdown(results) + "\n"}
    return write_files(folder, texts)


def _kernels(H: int, T: int, format: str, precision: Any, target: Any) -> list[Kernel]:
    if format == "gemv-int8":
        return gemv_int8(variants.dense(H).module())
    if format == "dense":
        return kernels_of(variants.dense(H).module(), target, steps=T, batch=1, format="dense")
    pattern = format if format.startswith("block") else "unstructured"
    made = variants.doped(H, Variant(compression=_COMPRESSION, pattern=pattern))
    return kernels_of(made, target, steps=T, batch=1, format=format, precision=precision)


def _row(cell: dict[str, Any], us: float, samples: list[float], device: Device) -> dict[str, Any]:
    predicted = sum(cost_model.time(p, device) for p in cell["phases"])
    keys = ("format", "precision", "H", "T")
    return {
        **{key: cell[key] for key in keys},
        "us": us,
        "samples_us": samples,
        "predicted": round(predicted, 3),
        "ratio": round(predicted / us, 4),
    }
