"""What a schedule is asked about, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from scipy import sparse as sp

from tvm_doping.kernels.plan import Config, Part


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One operation to schedule: the structured parts, and S of all of them side by side over the concatenated input.

    batch  the number of streams to be fast for; every number of streams works.
    """

    operation: Literal["lstm", "linear"]
    rows: int
    columns: int
    parts: tuple[Part, ...]
    sparse: sp.csr_array
    batch: int = 1


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to run a layer, with the cycles a step of one stream is predicted to take."""

    format: str | None
    params: dict[str, int] = field(default_factory=dict)
    config: Config
    cycles: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Declined:
    """A schedule's refusal, with the reason."""

    reason: str
