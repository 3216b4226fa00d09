"""What `bench-accuracy` trains: methods, compression factors and values of settings, and what each run is called."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DENSE, SMALLER = "dense", "smaller dense"
# What each method makes of a recipe; "doped" ones share their budget between the structured part and S. The smaller dense model
# has fewer hidden units in place (`models.rivals`): as many parameters in the modules that the others dope.
METHODS: dict[str, dict[str, Any]] = {
    "doped kronecker": {"doping.structure": "kronecker"},
    "doped low rank": {"doping.structure": "low_rank"},
    "doped hybrid": {"doping.structure": "hybrid"},
    "pruned": {"doping.structure": "zero"},
    "kronecker": {"doping.structure": "kronecker", "doping.sparse": False},
    "low rank": {"doping.structure": "low_rank", "doping.sparse": False},
    "hybrid": {"doping.structure": "hybrid", "doping.sparse": False},
    SMALLER: {},
}
OF_METHODS = ("doping.structure", "doping.sparse", "doping.compression")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A method at a compression factor, and the values of the settings that are varied."""

    method: str
    factor: float
    vary: Mapping[str, Any] = field(default_factory=dict)

    def row(self, seed: int) -> dict[str, Any]:
        """What accuracy.json says of the run before its results."""
        row = {"method": self.method, "compression": self.factor, "seed": seed}
        return {**row, "vary": dict(self.vary)} if self.vary else row

    def settings(self, overrides: Mapping[str, Any], *, started: bool) -> dict[str, Any]:
        """The recipe's overrides; started: whether the run begins from a trained dense model."""
        if self.method in (DENSE, SMALLER):
            return {k: v for k, v in overrides.items() if not k.startswith("doping.")} | {"doping": None}
        nearest = {"doping.init": "nearest"} if started else {}
        return {
            **overrides,
            **nearest,
            **METHODS[self.method],
            "doping.compression": self.factor,
            **self.vary,
        }


def cells_of(
    methods: Sequence[str], factors: Sequence[float], vary: Mapping[str, Sequence[Any]]
) -> Iterator[Cell]:
    """Each method at each factor, and where it has an S with each combination of values: most of them are settings of S."""
    for factor in factors:
        for method in methods:
            doped = method != SMALLER and METHODS[method].get("doping.sparse", True)
            for values in itertools.product(*vary.values()) if doped else [()]:
                yield Cell(
                    method=method, factor=factor, vary=dict(zip(vary, values, strict=True)) if doped else {}
                )


def name_of(row: Mapping[str, Any]) -> str:
    """Of a run's folder."""
    said = re.sub(r"[^\w.]+", "-", label(row))
    return f"{said}-{row['compression']:g}x-{row['seed']}"


def label(row: Mapping[str, Any]) -> str:
    """A row's method, and the values of what is varied: "pruned, pattern nm32"."""
    words = [f"{key.removeprefix('doping.')} {value}" for key, value in row.get("vary", {}).items()]
    return ", ".join([row["method"], *words])


def grouped(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[float, str], list[Mapping[str, Any]]]:
    """The rows of each (compression, label), one a seed."""
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["compression"], label(row)), []).append(row)
    return groups
