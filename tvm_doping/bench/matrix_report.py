"""The matrix as a table, a plot of speed-up against compression, and a roofline plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_doping.bench.cells import Variant
from tvm_doping.bench.matrix import DENSE, read
from tvm_doping.bench.plots import new_figure, png_of
from tvm_doping.places import write_files

FP32 = ("onnxruntime", "openvino")
_MARKS = {"unstructured": "o-", "nm32": "s--", "block16": "^:"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model of one group. us: its median; fp32, int8, dense: how many times as long those take;

    roofline: the share of the physically possible speed that it reaches, and `by` what that is bound by.
    """

    H: int
    batch: int
    T: int
    threads: int
    variant: Variant
    us: float
    fp32: float
    best: str
    int8: float
    dense: float
    roofline: float
    by: str
    bytes: int
    macs: int
    formats: str


def cells(groups: Sequence[dict[str, Any]]) -> list[Cell]:
    """All cells of some groups, in order of H, batch, T, threads, pattern and compression."""
    found = []
    for group in groups:
        us = {name: engine["us"]["median"] for name, engine in group["engines"].items()}
        best = min(FP32, key=lambda name: us[name])
        for name, model in group["models"].items():
            roofline = model["roofline"]
            found.append(
                Cell(
                    **{key: group[key] for key in ("H", "batch", "T", "threads")},
                    variant=Variant.of(name),
                    us=us[name],
                    fp32=us[best] / us[name],
                    best=best,
                    int8=us["onnxruntime-int8"] / us[name],
                    dense=us[DENSE] / us[name],
                    roofline=roofline["us"] / us[name],
                    by=f"{roofline['by']}, {roofline['level']}",
                    bytes=roofline["bytes"],
                    macs=roofline["macs"],
                    formats=", ".join(dict.fromkeys(model["formats"])),
                )
            )
    return sorted(
        found,
        key=lambda c: (c.H, c.batch, c.T, c.threads, c.variant.pattern, c.variant.compression),
    )


def markdown(groups: Sequence[dict[str, Any]]) -> str:
    """A row a cell, and what could not be measured."""
    every = cells(groups)
    slower = sum(cell.dense < 1 for cell in every)
    heads = "H|batch|T|threads|pattern|compression|µs a call|to best fp32|to int8|to own dense|of roofline|bound by|format"
    lines = [
        "LSTM layers alone (two, I = H, untrained), fp32: how many times as long the others take, medians of one interleaved "
        "run a row's group. Best fp32: the faster of ONNX Runtime (ort) and OpenVINO (ov). int8: ONNX Runtime, dynamic.",
        "",
        f"{len(every)} cells; in {slower} of them the own dense build is faster.",
        "",
        f"| {heads.replace('|', ' | ')} |",
        "|" + "---|" * len(heads.split("|")),
    ]
    for c in every:
        row = (
            *(c.H, c.batch, c.T, c.threads, c.variant.pattern, f"{c.variant.compression:g}x", f"{c.us:,.4g}"),
            f"{c.fp32:.2f}x {'ort' if c.best == FP32[0] else 'ov'}",
            *(f"{c.int8:.2f}x", f"{c.dense:.2f}x", f"{c.roofline:.0%}", c.by, c.formats),
        )
        lines.append("| " + " | ".join(map(str, row)) + " |")
    impossible = [
        f"- H {g['H']}, batch {g['batch']}, T {g['T']}: {name}: {why}"
        for g in groups
        for name, why in g["impossible"].items()
    ]
    machine = groups[0]["machine"]
    facts = f"{machine['cpu']} ({', '.join(f'{k} {v}' for k, v in machine['caches'].items())}); {groups[0]['created']}"
    return "\n".join([*lines, "", *(["Not there:", *impossible, ""] if impossible else []), facts, ""])


def write(out: str | Path) -> dict[str, Path]:
    """table.md, speedup.png and roofline.png of the groups in a folder, written beside them."""
    folder, groups = Path(out), read(out)
    contents: dict[str, str | bytes] = {
        "table.md": markdown(groups),
        "speedup.png": speedup(cells(groups)),
        "roofline.png": roofline(groups),
    }
    return write_files(folder, contents)


def speedup(every: Sequence[Cell]) -> bytes:
    """Speed-up over the best fp32 library against compression: a panel a batch, T and threads; a line an H and pattern."""
    keys = sorted({(c.batch, c.T, c.threads) for c in every})
    columns = min(4, len(keys))
    rows = -(-len(keys) // columns)
    figure = new_figure(4.0 * columns, 3.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    colours = {H: f"C{at}" for at, H in enumerate(sorted({c.H for c in every}))}
    for panel, key in zip(panels, keys, strict=False):
        mine = [c for c in every if (c.batch, c.T, c.threads) == key]
        for H, pattern in sorted({(c.H, c.variant.pattern) for c in mine}):
            line = [c for c in mine if (c.H, c.variant.pattern) == (H, pattern)]
            panel.plot(
                [c.variant.compression for c in line],
                [c.fp32 for c in line],
                _MARKS.get(pattern, "x-"),
                color=colours[H],
                label=f"{H} {pattern}",
                markersize=3,
            )
        panel.set_title(f"batch {key[0]}, T {key[1]}, {key[2]} thread(s)", fontsize=8)
        panel.set_yscale("log")
        panel.axhline(1, color="#999999", linewidth=0.6)
        panel.set_xlabel("compression by parameters", fontsize=7)
        panel.set_ylabel("speed-up over the best fp32 library", fontsize=7)
        panel.tick_params(labelsize=6)
    for panel in panels[len(keys) :]:
        panel.set_visible(False)
    panels[0].legend(fontsize=5, ncols=2)
    return png_of(figure)


def roofline(groups: Sequence[dict[str, Any]]) -> bytes:
    """10^9 multiply-adds a second against multiply-adds a byte, under the bandwidths and the FMA peak measured."""
    figure = new_figure(6.4, 4.4)
    panel = figure.subplots()
    every = cells(groups)
    limits = [group["machine"]["ceilings"] for group in groups]
    peak = max(limit["gmacs"] for limit in limits)
    xs = [c.macs / max(1, c.bytes) for c in every] or [1.0]
    span = [min(xs) / 2, max(max(xs) * 2, 2.0)]
    for level in limits[0]["gbs"]:
        gbs = max(limit["gbs"][level] for limit in limits)
        knee = min(max(peak / gbs, span[0]), span[1])
        line = [span[0], knee, span[1]]
        panel.plot(line, [min(peak, gbs * x) for x in line], linewidth=0.8, label=f"{level} {gbs:.0f} GB/s")
    for pattern, mark in _MARKS.items():
        mine = [c for c in every if c.variant.pattern == pattern]
        x, y = [c.macs / max(1, c.bytes) for c in mine], [c.macs / c.us / 1e3 for c in mine]
        panel.plot(x, y, mark[0], markersize=3, label=pattern)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("multiply-adds a byte of weights read", fontsize=8)
    panel.set_ylabel("10⁹ multiply-adds a second", fontsize=8)
    panel.legend(fontsize=6)
    return png_of(figure)
