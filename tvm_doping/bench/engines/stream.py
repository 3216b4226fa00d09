"""The two things every engine is: something that opens streams, and a stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Stream:
    """N streams side by side, taking T steps a call.

    call    x (T, N, I) float32 or tokens (T, N) int64 -> y (T, N, O) float32, carrying the state on.
            y may be overwritten by the next call. None where only the time means something (a floor).
    reset   back to the zero state.
    note    how it was set up, for the report.
    """

    call: Callable[[np.ndarray], np.ndarray | None]
    reset: Callable[[], None]
    note: str = ""


class Engine(Protocol):
    """A runtime holding one subject."""

    def open(self, steps: int, batch: int) -> Stream:
        """A stream of N = batch for calls of T = steps."""
        ...
