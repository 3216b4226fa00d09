"""The plots of bench-accuracy: accuracy against time of a compiled call, and how the parts of doped weights lean on each other."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from tvm_doping.bench.accuracy_cells import DENSE, grouped, label
from tvm_doping.bench.plots import new_figure, png_of
from tvm_doping.models.tasks import TASKS

_MARKS = "os^Dv<>P*X"


def plots(results: Mapping[str, Any]) -> dict[str, bytes]:
    """File name -> PNG, of those that there are values for."""
    made = {"accuracy.png": _pareto(results), "cancellation.png": _cancellation(results)}
    return {name: png for name, png in made.items() if png is not None}


def _pareto(results: Mapping[str, Any]) -> bytes | None:
    """Each method at each factor as a point: the mean over the seeds with their extremes, and the time of its compiled call."""
    from matplotlib.ticker import ScalarFormatter

    task = TASKS[results["recipe"]["task"]]
    timed = {
        key: (next(row["compiled"]["us"]["median"] for row in rows if "compiled" in row), rows)
        for key, rows in grouped(results["runs"]).items()
        if any("compiled" in row for row in rows)
    }
    if len(timed) < 2:
        return None
    figure, panel = _figure()
    names = sorted({name for _, name in timed if name != DENSE})
    for (factor, name), (us, rows) in timed.items():
        values = [row["test"] for row in rows]
        mean = statistics.fmean(values)
        spread = [[mean - min(values)], [max(values) - mean]]
        mark = _MARKS[names.index(name) % len(_MARKS)] if name in names else "_"
        colour = f"C{names.index(name) % 10}" if name in names else "#444444"
        said = {container.get_label() for container in panel.containers}
        panel.errorbar(
            us,
            mean,
            yerr=spread,
            fmt=mark,
            color=colour,
            markersize=5,
            elinewidth=0.8,
            label=None if name in said else name,
        )
        panel.annotate(f"{factor:g}x", (us, mean), xytext=(5, 3), textcoords="offset points", fontsize=6)
    panel.set_xscale("log")
    for axis in (panel.xaxis.set_major_formatter, panel.xaxis.set_minor_formatter):
        axis(ScalarFormatter())
    panel.legend(fontsize=6)
    panel.margins(x=0.2)
    panel.set_xlabel("µs a compiled call", fontsize=8)
    better = "more is better" if task.higher else "less is better"
    panel.set_ylabel(f"test {task.best} ({better})", fontsize=8)
    return png_of(figure)


def _cancellation(results: Mapping[str, Any]) -> bytes | None:
    """Of each method's first seed, over the steps in which S is thinned."""
    lines: dict[str, list[list[float]]] = {}
    for row in results["runs"]:
        if "annealing" in row:
            lines.setdefault(f"{label(row)}, {row['compression']:g}x", row["annealing"])
    if not lines:
        return None
    figure, panel = _figure()
    for name, points in lines.items():
        panel.plot(
            [step for step, _, _ in points], [value for _, _, value in points], label=name, linewidth=1
        )
    panel.axhline(0, color="#cccccc", linewidth=0.6)
    panel.set_xlabel("step", fontsize=8)
    panel.set_ylabel("share of both parts' energy that cancels", fontsize=8)
    panel.legend(fontsize=6)
    return png_of(figure)


def _figure() -> tuple[Any, Any]:
    figure = new_figure(6.4, 4.0)
    panel = figure.subplots()
    panel.tick_params(which="both", labelsize=7)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    return figure, panel
