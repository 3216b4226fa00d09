"""The cells of the benchmark matrix, and the groups that share their dense baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from tvm_doping.errors import InvalidInput

Axes = dict[str, tuple[Any, ...]]

FULL: Axes = {
    "H": (128, 256, 650, 1024, 1500, 2048),
    "compression": (5, 10, 15, 20, 25, 50),
    "pattern": ("unstructured", "nm32", "block16"),
    "batch": (1, 4, 8, 32),
    "T": (1, 35, 100),
    "threads": (1, 2),
}
FAST: Axes = {
    **FULL,
    "H": (128, 650, 1500),
    "compression": (10, 20),
    "batch": (1, 8),
    "T": (1, 35),
    "threads": (1,),
}


@dataclass(frozen=True, kw_only=True, order=True)
class Variant:
    """A doped model of a group: its compression by parameters, and the pattern of S."""

    compression: float
    pattern: str

    @property
    def name(self) -> str:
        """How results name its engine: "20x nm32"."""
        return f"{self.compression:g}x {self.pattern}"

    @classmethod
    def of(cls, name: str) -> Variant:
        """The variant of a name."""
        compression, pattern = name.split("x ", 1)
        return cls(compression=float(compression), pattern=pattern)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The cells of one H, batch, T and number of threads: one interleaved run measures them all and the dense baselines."""

    H: int
    batch: int
    T: int
    threads: int
    variants: tuple[Variant, ...]

    @property
    def name(self) -> str:
        """The stem of its file of results."""
        return f"H{self.H}-N{self.batch}-T{self.T}-threads{self.threads}"

    def compiled_for(self, lanes: int) -> tuple[int, int]:
        """(batch, steps) to compile for. Streams side by side leave no lanes to steps: all T then share a model."""
        return streams_compiled_for(self.batch, lanes), min(self.T, 4 * lanes) if self.batch == 1 else 1

    @property
    def work(self) -> float:
        """Seconds that it takes, roughly: set-up and the least rounds, and calls so long that they exceed these."""
        return 20.0 + 4e-9 * self.H**2 * self.batch * self.T * (4 + 0.2 * len(self.variants))


def streams_compiled_for(batch: int, lanes: int) -> int:
    """The batch to compile for: full tiles, of two vectors at most, are alike however many there are, and share one model."""
    return min(batch, 2 * lanes) if batch % lanes == 0 else batch


def groups(axes: Mapping[str, Sequence[Any]], lanes: int) -> Iterator[Group]:
    """All groups of some axes; those that share compiled models come in a row."""
    variants = tuple(
        Variant(compression=c, pattern=p) for p, c in product(axes["pattern"], axes["compression"])
    )
    batches = sorted(axes["batch"], key=lambda n: (streams_compiled_for(n, lanes), n))
    for H, batch, T, threads in product(axes["H"], batches, axes["T"], axes["threads"]):
        yield Group(H=H, batch=batch, T=T, threads=threads, variants=variants)


def filtered(axes: Axes, only: Sequence[str]) -> Axes:
    """Axes held to some values: "H=650/1500,batch=1". InvalidInput for an unknown axis or value."""
    chosen = dict(axes)
    for setting in (part for text in only for part in text.split(",")):
        name, _, values = setting.strip().partition("=")
        if name not in FULL:
            raise _refused(setting, f"AXIS=VALUE, an axis among {', '.join(FULL)}")
        known = {str(value): value for value in FULL[name]}
        if unknown := [value for value in values.split("/") if value not in known]:
            raise _refused(setting, f"values of {name} among {', '.join(known)}", unknown[0])
        chosen[name] = tuple(known[value] for value in values.split("/"))
    return chosen


def _refused(setting: str, needs: str, got: str | None = None) -> InvalidInput:
    return InvalidInput("--only", needs, repr(got or setting), "For example --only H=650/1500,batch=1.")
