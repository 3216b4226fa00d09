"""PyTorch's own nn.LSTM: fp32, or its dynamic int8 quantisation while torch has it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from tvm_doping.bench.engines.stream import Stream
from tvm_doping.bench.subject import Subject
from tvm_doping.errors import BenchError


def engine(subject: Subject, *, threads: int, precision: str) -> Torch:
    """The subject as a PyTorch module of `threads` threads; precision "fp32" or "int8"."""
    return Torch(subject, threads, precision)


class Torch:
    """A module under inference_mode."""

    def __init__(self, subject: Subject, threads: int, precision: str) -> None:
        torch.set_num_threads(threads)
        self.subject = subject
        self.module = subject.module()
        if precision == "int8":
            self.module = _quantised(self.module)

    def open(self, steps: int, batch: int) -> Stream:
        """The module called with its last state."""
        hidden, count = self.subject.layers[0].hidden, len(self.subject.layers)
        state: list[tuple[torch.Tensor, torch.Tensor]] = []

        def reset() -> None:
            state[:] = [(torch.zeros(count, batch, hidden), torch.zeros(count, batch, hidden))]

        def call(x: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                y, state[0] = self.module(torch.from_numpy(x), state[0])
            return y.numpy()

        reset()
        return Stream(call=call, reset=reset)


def _quantised(module: torch.nn.Module) -> torch.nn.Module:
    quantisation: Any = getattr(torch.ao, "quantization", None)
    if not hasattr(quantisation, "quantize_dynamic"):
        raise BenchError(
            "baseline torch-int8",
            "a torch with torch.ao.quantization.quantize_dynamic",
            f"torch {torch.__version__}",
            "Leave this baseline out.",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says at every call that it will be removed
        return quantisation.quantize_dynamic(module, {torch.nn.LSTM, torch.nn.Linear}, dtype=torch.qint8)
