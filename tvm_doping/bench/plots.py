"""The plot of a scope: every engine's median time, with its spread, on a logarithmic axis."""

from __future__ import annotations

import io
from typing import Any

DOPED = "tvm_doping"
_OURS, _FP32, _INT8, _FLOOR = "#1b7f4d", "#8a93a6", "#c08a3e", "#d5d8de"


def plot(results: dict[str, Any], scope: str) -> bytes:
    """A PNG: one panel for each T, one bar for each engine; the whiskers are p20 and p80."""
    from tvm_doping.bench.report import TITLES, caption, headline

    cells = [cell for cell in results["cells"] if cell["scope"] == scope]
    height = 1.6 + 0.36 * len(cells[0]["engines"])
    figure = new_figure(5.6 * len(cells), height)
    panels = figure.subplots(1, len(cells), squeeze=False)[0]
    for panel, cell in zip(panels, cells, strict=True):
        _bars(panel, cell)
    figure.suptitle(f"{TITLES[scope]}: {headline(results, scope)}", fontsize=8)
    figure.supxlabel(caption(results), fontsize=5, color="#666666")
    return png_of(figure, dpi=150)


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches, without a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: Any, dpi: int = 130) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _bars(panel: Any, cell: dict[str, Any]) -> None:
    engines = sorted(cell["engines"], key=lambda engine: -engine["us"]["median"])
    ours = next(engine["us"]["median"] for engine in engines if engine["name"] == DOPED)
    for at, engine in enumerate(engines):
        us = engine["us"]
        spread = [[us["median"] - us["p20"]], [us["p80"] - us["median"]]]
        panel.barh(at, us["median"], xerr=spread, color=_colour(engine), error_kw={"elinewidth": 0.8})
        ratio = "" if engine["name"] == DOPED else f"  {us['median'] / ours:.1f}x"
        panel.text(us["p80"] * 1.08, at, f"{us['median']:.4g} µs{ratio}", va="center", fontsize=7)
    panel.set_yticks(range(len(engines)), [engine["name"] for engine in engines], fontsize=8)
    panel.set_xscale("log")
    low, high = min(e["us"]["p20"] for e in engines), max(e["us"]["p80"] for e in engines)
    panel.set_xlim(low / 2, high * 6)  # room for the labels
    panel.set_xlabel(f"µs a call of T = {cell['steps']}", fontsize=8)
    panel.tick_params(axis="x", labelsize=7)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _colour(engine: dict[str, Any]) -> str:
    if engine["name"] == DOPED:
        return _OURS
    if engine["error"] is None:
        return _FLOOR
    return _INT8 if engine["precision"] == "int8" else _FP32
