"""Results as tables (terminal and Markdown), and all the files of a report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm_doping.bench.measure import tokens_a_second
from tvm_doping.errors import BenchError
from tvm_doping.places import check_writable, write_files

DOPED = "tvm_doping"
EXPLANATION = (
    "to tvm_doping: how many times as long a call takes. "
    "tokens/s: of the median, all streams together. "
    "error: the largest difference from PyTorch's outputs, over three calls."
)
TITLES = {"lstm": "LSTM layers alone", "model": "Whole model"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One engine in one scope: texts, T by T. rates: tokens a second, of the whole model only."""

    name: str
    precision: str
    times: tuple[str, ...]
    ratios: tuple[str, ...]
    errors: tuple[str, ...]
    rates: tuple[str, ...] = ()

    @property
    def cells(self) -> list[str]:
        """What `heads` says, T by T."""
        columns = [self.times, *([self.rates] if self.rates else []), self.ratios, self.errors]
        return [cell for each in zip(*columns, strict=True) for cell in each]


def heads(scope: str, steps: int) -> list[str]:
    """The heads of a row's cells for one T."""
    rate = ["tokens/s"] if scope == "model" else []
    return [f"T = {steps}: µs a call (p20-p80)", *rate, "to tvm_doping", "error"]


def renderable(results: dict[str, Any]) -> Any:
    """A rich Group: a table for each scope and T, in 80 columns."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    for scope in scopes(results):
        parts.append(Text(f"{TITLES[scope]}: {headline(results, scope)}"))
        for at, steps in enumerate(steps_of(results, scope)):
            table = Table()
            table.add_column(f"T = {steps}", no_wrap=True)
            table.add_column("")
            for title in ("µs a call (p20-p80)", "to tvm_doping", "error"):
                table.add_column(title, justify="right", no_wrap=True)
            for row in rows(results, scope):
                style = "bold green" if row.name == DOPED else None
                table.add_row(
                    row.name, row.precision, row.times[at], row.ratios[at], row.errors[at], style=style
                )
            parts.append(table)
            if scope == "model":  # beside the times it would not fit
                rates = (f"{row.name} {row.rates[at]}" for row in rows(results, scope))
                parts.append(Text(f"Tokens a second: {', '.join(rates)}."))
    return Group(*parts, Text(EXPLANATION), Text(caption(results), style="dim"))


def markdown(results: dict[str, Any]) -> str:
    """The same as Markdown, all T of a scope in one table."""
    lines: list[str] = []
    for scope in scopes(results):
        steps = steps_of(results, scope)
        titles = [title for t in steps for title in heads(scope, t)]
        lines += [f"**{TITLES[scope]}**: {headline(results, scope)}", ""]
        lines.append("| " + " | ".join(["engine", "", *titles]) + " |")
        lines.append("|---|---|" + "---:|" * len(titles))
        lines += [
            "| " + " | ".join([row.name, row.precision, *row.cells]) + " |" for row in rows(results, scope)
        ]
        lines.append("")
    return "\n".join([*lines, EXPLANATION, "", caption(results), ""])


def write_all(results: dict[str, Any], folder: Path) -> dict[str, Path]:
    """results.json, table.md, SCOPE.png for each scope, report.html."""
    from tvm_doping.bench.page import page
    from tvm_doping.bench.plots import plot

    check_folder(folder)
    images = {scope: plot(results, scope) for scope in scopes(results)}
    contents: dict[str, str | bytes] = {
        "results.json": json.dumps(results, indent=1),
        "table.md": markdown(results),
        **{f"{scope}.png": image for scope, image in images.items()},
        "report.html": page(results, images),
    }
    return write_files(folder, contents)


def check_folder(folder: Path) -> None:
    """Raise BenchError for a folder that results cannot, or should not, be written to."""
    for name, what in (("config.json", "a run folder"), ("bundle.json", "a bundle")):
        if (folder / name).is_file():
            raise BenchError(str(folder), "a folder of its own for results", what, "Name another with --out.")
    check_writable(folder, BenchError)


def scopes(results: dict[str, Any]) -> list[str]:
    """The scopes measured, in order. Raises BenchError for something that is not results."""
    try:
        return list(dict.fromkeys(cell["scope"] for cell in results["cells"]))
    except (KeyError, TypeError) as error:
        raise BenchError(
            "results",
            "what tvm_doping.bench.run returned",
            f"no {error}",
            "Give the contents of a results.json.",
        ) from error


def steps_of(results: dict[str, Any], scope: str) -> list[int]:
    """The T measured in a scope."""
    return [cell["steps"] for cell in results["cells"] if cell["scope"] == scope]


def rows(results: dict[str, Any], scope: str) -> Iterator[Row]:
    """A row for each engine of a scope. A ratio is its median over tvm_doping's."""
    cells = [cell for cell in results["cells"] if cell["scope"] == scope]
    for index, first in enumerate(cells[0]["engines"]):
        same = [cell["engines"][index] for cell in cells]
        ours = [cell["engines"][0]["us"]["median"] for cell in cells]
        yield Row(
            name=first["name"],
            precision=first["precision"],
            times=tuple(_time(engine["us"]) for engine in same),
            ratios=tuple(
                "" if first["name"] == DOPED else f"{engine['us']['median'] / our:.2f}x"
                for engine, our in zip(same, ours, strict=True)
            ),
            errors=tuple("" if engine["error"] is None else f"{engine['error']:.1e}" for engine in same),
            rates=tuple(_rate(cell, engine) for cell, engine in zip(cells, same, strict=True))
            if scope == "model"
            else (),
        )


def headline(results: dict[str, Any], scope: str) -> str:
    """Sizes, compression both ways and perplexities."""
    model, facts = results["model"], results["model"][scope]
    shape = ", ".join(f"{layer['inputs']}->{layer['hidden']}" for layer in model["layers"])
    parts = [f"{model['name']} ({shape}), batch {results['settings']['batch']}"]
    parts.append(f"{results['settings']['threads']} thread(s)")
    if facts["compression"]:
        by = facts["compression"]
        parts.append(f"{by['by_parameters']:.1f}x smaller by parameters, {by['by_bytes']:.1f}x by bytes")
    metrics = model["metrics"]
    if "test_perplexity" in metrics:
        dense = metrics.get("dense_test_perplexity")
        beside = "" if dense is None else f" (dense {dense:.1f})"
        parts.append(f"test perplexity {metrics['test_perplexity']:.1f}{beside}")
    return ", ".join(parts)


def caption(results: dict[str, Any]) -> str:
    """The machine, in a line."""
    machine = results["machine"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    versions = ", ".join(
        f"{name} {version}" for name, version in machine["versions"].items() if name != "tvm-doping"
    )
    return f"{machine['cpu']} ({machine['cores']} cores; {caches}); {versions}; {results['created']}"


def _rate(cell: dict[str, Any], engine: dict[str, Any]) -> str:
    return f"{tokens_a_second(cell['steps'], cell['batch'], engine['us']['median']):,.0f}"


def _time(us: dict[str, float]) -> str:
    return f"{_short(us['median'])} ({_short(us['p20'])}-{_short(us['p80'])})"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"
