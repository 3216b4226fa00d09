"""The proof of choice: every format that the schedules could have taken, compiled by force and timed beside what they chose."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvm_doping.bench import variants
from tvm_doping.bench.cells import FULL, Axes, Group, Variant, filtered, groups
from tvm_doping.bench.engines.doped import Doped
from tvm_doping.bench.machine import describe, pinned
from tvm_doping.bench.measure import interleave, summarise
from tvm_doping.bench.report import check_folder
from tvm_doping.bundle import Bundle
from tvm_doping.errors import BenchError, DopingError, ScheduleError
from tvm_doping.places import write_files
from tvm_doping.sparsity import FORMATS
from tvm_doping.strict_json import read_json
from tvm_doping.targets import Target, resolve

FORMAT_VERSION = 2
CHOICE = "choice.json"
KEY = ("target", "H", "batch", "T", "threads", "model")
CHOSEN, DENSE = "chosen", "dense"
WITHIN = 1.1  # of the best measured: what counts as a right choice
AXES: Axes = {
    **FULL,
    "H": (128, 256, 650, 1500),
    "compression": (5, 20, 50),
    "pattern": ("unstructured", "block16"),
    "batch": (1, 8, 32),
    "T": (1, 35),
    "threads": (1,),
}


def run(
    out: str | Path,
    *,
    only: Sequence[str] = (),
    resume: bool = True,
    seconds: float = 4.0,
    target: str = "auto",
    axes: Axes | None = None,
    echo: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure each cell, all candidates and the choice interleaved in one run, and write choice.json and choice.md after each.

    only, axes  as in bench.matrix.run; seconds: of measuring a cell;
    resume      keep the cells of this target that choice.json has; False measures them again. Others in it are kept either way.

    Returns what choice.json holds. Raises BenchError where it is of another machine.
    """
    folder, machine = Path(out), resolve(target)
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    cells = _measured(folder / CHOICE)
    results: dict[str, Any] = {}
    for group in groups(filtered(axes or AXES, only), machine.lanes):
        for variant in group.variants:
            key = (machine.name, group.H, group.batch, group.T, group.threads, variant.name)
            if key in cells and resume:
                continue
            try:
                cells[key] = _cell(group, variant, machine, seconds)
            except DopingError as error:  # a size or density at which the pattern does not exist
                echo(f"{group.name}, {variant.name}: {' '.join(str(error).split())}")
                continue
            echo(_line(cells[key]))
            results = _written(folder, cells)
    variants.forget()
    return results or _written(folder, cells)


def _measured(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The cells of an earlier call, by what they are of."""
    if not path.is_file():
        return {}
    again = "Name another folder."
    found = read_json(path, lambda needs, got: BenchError(str(path), needs, got, again))
    if not isinstance(found, dict) or found.get("format_version") != FORMAT_VERSION:
        raise BenchError(str(path), f"results of format_version {FORMAT_VERSION}", "others", again)
    here, there = ((machine["cpu"], machine["family"]) for machine in (describe(), found["machine"]))
    if here != there:
        raise BenchError(str(path), f"results of this machine ({' '.join(here)})", " ".join(there), again)
    return {tuple(cell[name] for name in KEY): cell for cell in found["cells"]}


def _written(folder: Path, cells: Mapping[tuple[Any, ...], dict[str, Any]]) -> dict[str, Any]:
    results = {
        "format_version": FORMAT_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "cells": [cells[key] for key in sorted(cells)],
    }
    write_files(folder, {CHOICE: json.dumps(results), "choice.md": markdown(results)})
    return results


def markdown(results: dict[str, Any]) -> str:
    """How often the choice was right, and a row a cell."""
    cells = results["cells"]
    right = sum(cell["loss"] <= WITHIN for cell in cells)
    lines = [
        f"In {right} of {len(cells)} cells ({right / max(1, len(cells)):.0%}) the choice is within 10 % of the best measured.",
        "",
        "| H | batch | T | model | chosen | µs | best | µs | chosen / best |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for c in cells:
        of = c["us"]
        row = (c["H"], c["batch"], c["T"], c["model"], c["formats"], f"{of[CHOSEN]['median']:.4g}", c["best"])
        lines.append(
            "| " + " | ".join(map(str, (*row, f"{of[c['best']]['median']:.4g}", f"{c['loss']:.2f}"))) + " |"
        )
    return "\n".join([*lines, "", f"{results['machine']['cpu']}; {results['created']}", ""])


def _cell(group: Group, variant: Variant, target: Target, seconds: float) -> dict[str, Any]:
    fast_for = group.compiled_for(target.lanes)
    bundles = {CHOSEN: variants.compiled(group.H, variant, target, *fast_for)}
    taken = _formats(bundles[CHOSEN])
    for name in FORMATS:
        if taken == {name}:
            continue  # the same code: the choice stands for it
        try:
            bundles[name] = variants.compiled(group.H, variant, target, *fast_for, force=(("format", name),))
        except ScheduleError:
            continue  # no candidate on this target
    if taken != {DENSE}:
        bundles[DENSE] = variants.compiled(group.H, None, target, *fast_for)
    x = variants.dense(group.H).inputs(group.T, group.batch, 1, 0)[0]
    with pinned(group.threads):
        streams = {name: Doped(bundle).open(group.T, group.batch) for name, bundle in bundles.items()}
        calls = {name: (lambda stream=stream: stream.call(x)) for name, stream in streams.items()}
        samples = interleave(calls, seconds=seconds)
    us = {
        name: {key: float(f"{value:.5g}") for key, value in summarise(values).items()}
        for name, values in samples.items()
    }
    best = min(us, key=lambda name: us[name]["median"])
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "target": target.name,
        "H": group.H,
        "batch": group.batch,
        "T": group.T,
        "threads": group.threads,
        "model": variant.name,
        "formats": ", ".join(sorted(taken)),
        "best": best,
        "loss": round(us[CHOSEN]["median"] / us[best]["median"], 4),
        "us": us,
        "predicted": _predicted(bundles[CHOSEN]),
    }


def _formats(bundle: Bundle) -> set[str]:
    return {name for layer in bundle.manifest.layers for name in layer.format.split(", ")}


def _predicted(bundle: Bundle) -> dict[str, int]:
    """Cycles of all products by format, as the schedules predicted them for a step; of a format in two widths the faster."""
    total: dict[str, int] = {}
    for layer in bundle.manifest.layers:
        for key in ("input", "recurrent"):
            best: dict[str, int] = {}
            for other in layer.plan[key]["alternatives"]:
                name = str(other["format"])
                best[name] = min(other["cycles"], best.get(name, other["cycles"]))
            for name, cycles in best.items():
                total[name] = total.get(name, 0) + cycles
    return total


def _line(cell: dict[str, Any]) -> str:
    where = f"H {cell['H']}, batch {cell['batch']}, T {cell['T']}, {cell['model']}"
    return f"{where}: chose {cell['formats']}, best {cell['best']}, {cell['loss']:.2f} of it"
