"""The compiled model under test, through the same session that users call."""

from __future__ import annotations

from typing import cast

import numpy as np

from tvm_doping.bench.engines.stream import Stream
from tvm_doping.bundle import Bundle
from tvm_doping.runtime import Session


class Doped:
    """A bundle of tvm_doping; also the dense build, whose bundle holds dense plans."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        # A bundle compiled for one thread runs on no more: it is then what the others are compared with.
        self.bundle, self.threads = bundle, threads if bundle.manifest.threads > 1 else 1

    def open(self, steps: int, batch: int) -> Stream:
        """`session.step` at T = 1, else `session.run`; y is the session's first output."""
        session = Session(self.bundle, batch=batch, threads=self.threads)
        several = len(self.bundle.manifest.outputs) > 1

        def run(x: np.ndarray) -> np.ndarray:
            y = session.run(x)
            return cast(np.ndarray, y[0] if several else y)

        def step(x: np.ndarray) -> np.ndarray:
            y = session.step(x[0])
            return cast(np.ndarray, y[0] if several else y)[None]

        return Stream(call=step if steps == 1 else run, reset=session.reset)
