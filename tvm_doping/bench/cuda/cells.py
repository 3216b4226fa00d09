"""What is measured on a GPU: a cell is a size, a batch and a number of steps; all engines of a cell take turns in one run."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, kw_only=True)
class Model:
    """Two doped LSTM layers (I = H): their compression by parameters, and the precision of stored values."""

    H: int
    compression: int
    precision: str = "exact"

    @property
    def name(self) -> str:
        """Its folder in a kit."""
        return f"H{self.H}-{self.engine}"

    @property
    def engine(self) -> str:
        """How results name it: "20x", "20x-fp16"."""
        return f"{self.compression}x" + ("" if self.precision == "exact" else f"-{self.precision}")

    @property
    def layers(self) -> str:
        """The file of its weights, which other precisions share."""
        return f"H{self.H}-{self.compression}x.npz"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """H, N streams side by side, T steps a call."""

    H: int
    batch: int
    T: int

    @property
    def file(self) -> str:
        """Its file of results."""
        return f"cuda-H{self.H}-N{self.batch}-T{self.T}.json"


SIZES, COMPRESSIONS = (1500, 650, 2048), (20, 10)  # what is asked first is measured first
MODELS = tuple(
    Model(H=H, compression=c, precision=p)
    for H, (c, p) in product(SIZES, [*((c, "exact") for c in COMPRESSIONS), (COMPRESSIONS[0], "fp16")])
)
QUICK = tuple(Cell(H=H, batch=N, T=T) for H, N, T in product((1500, 650), (1, 32), (35, 1, 100)))
FULL = (
    *QUICK,
    *(
        cell
        for cell in (Cell(H=H, batch=N, T=T) for H, N, T in product(SIZES, (1, 8, 32, 128), (1, 35, 100)))
        if cell not in QUICK
    ),
)
