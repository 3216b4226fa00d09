"""What the passes of one compilation share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tvm_doping.records import Book
from tvm_doping.sparsity.values import Precision
from tvm_doping.targets import Target

Pass = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Context:
    """target; batch, steps and threads (how many to be fast for), precision (how low stored values may go), force (choices of
    the schedules that a user forced), records (what was measured; None: all is predicted);

    names    handle of a constant's tensor -> the name of the parameter it came from;
    weights  filled by LiftWeights: name -> TVM tensor, in the order of main's last parameter.
    """

    target: Target
    batch: int = 1
    steps: int = 1
    precision: Precision = "exact"
    threads: int = 1
    force: Mapping[str, Any] | None = None
    records: Book | None = None
    names: dict[int, str] = field(default_factory=dict)
    weights: dict[str, Any] = field(default_factory=dict)
