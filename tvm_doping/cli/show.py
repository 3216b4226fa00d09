"""What the verbs share for showing things: one console, sizes as people read them, tables that fit a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console() -> Console:
    """Standard output; wide where it is a file or a pipe, so that no table is cut."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 180)


def table(title: str, *columns: str) -> Table:
    """An empty table; columns that start with ">" are numbers, set to the right."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(
            column.removeprefix(">"), justify="right" if column[:1] == ">" else "left", overflow="fold"
        )
    return made


def size(count: float) -> str:
    """Bytes as people read them: 830 B, 1.3 KiB, 27.0 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def ratio(dense: float, stored: float) -> str:
    """A compression factor: "20.1x"; nothing where nothing is stored."""
    return f"{dense / stored:.1f}x" if stored else "-"


def figure(value: float) -> str:
    """A metric: "1,115.25", and with more digits what is below 1, such as an accuracy: "0.9742"."""
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.4f}"


def measured(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a run's metrics say of its splits, and of its dense rival, in words: ("test perplexity", "115.25")."""
    for name, value in metrics.items():
        if name.startswith(("valid_", "test_", "dense_test_")) and isinstance(value, float):
            yield name.replace("_", " "), figure(value)


def shape(dims: Any) -> str:
    """A shape: "T x N x 650"."""
    return " x ".join(map(str, dims)) or "scalar"


def settings(texts: list[str] | None, option: str, example: str) -> dict[str, Any]:
    """NAME=VALUE texts as a dict; values are read as JSON where they are JSON, else they are text.

    example: what the message shows for a text that is no NAME=VALUE.
    """
    import json

    from tvm_doping.errors import InvalidInput

    found: dict[str, Any] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InvalidInput(option, "NAME=VALUE", repr(text), f"For example {option} {example}.")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value
    return found
