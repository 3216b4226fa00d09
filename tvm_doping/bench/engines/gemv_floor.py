"""The least a dense fp32 LSTM can do: its matrix products alone, no gates, by the BLAS that torch brings.

At T = 1 and N = 1 this is reading every weight once, so it is the bandwidth of whatever memory holds them.
"""

from __future__ import annotations

import numpy as np
import torch

from tvm_doping.bench.engines.stream import Stream
from tvm_doping.bench.subject import Subject


def engine(subject: Subject, *, threads: int, precision: str) -> GemvFloor:
    """The products of the subject's layers (and decoder) on `threads` threads."""
    torch.set_num_threads(threads)
    return GemvFloor(subject)


class GemvFloor:
    """[W_ih W_hh] [x; h] a layer and step; where T > 1, W_ih for all steps at once and W_hh step by step."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.pairs = [
            (torch.from_numpy(layer.w_ih), torch.from_numpy(layer.w_hh)) for layer in subject.layers
        ]
        self.joined = [torch.cat(pair, dim=1).contiguous() for pair in self.pairs]
        self.decoder = None if subject.decoder is None else torch.from_numpy(subject.decoder[0])

    def open(self, steps: int, batch: int) -> Stream:
        """Products on vectors of ones; what they hold does not matter to their time."""
        if steps == 1 and batch == 1:
            vectors = [torch.ones(w.shape[1]) for w in self.joined]
            products = [
                (torch.mv, w, v, torch.empty(w.shape[0])) for w, v in zip(self.joined, vectors, strict=True)
            ]
        else:
            products = []
            for w_ih, w_hh in self.pairs:
                products += [self._product(w_ih, steps * batch), *[self._product(w_hh, batch)] * steps]
        if self.decoder is not None:
            products.append(self._product(self.decoder, steps * batch))

        def call(x: np.ndarray) -> None:
            with torch.inference_mode():
                for multiply, w, operand, out in products:
                    multiply(w, operand, out=out)

        return Stream(call=call, reset=lambda: None, note="matrix products only")

    @staticmethod
    def _product(w: torch.Tensor, columns: int) -> tuple:
        if columns == 1:
            return torch.mv, w, torch.ones(w.shape[1]), torch.empty(w.shape[0])
        return torch.mm, w, torch.ones(w.shape[1], columns), torch.empty(w.shape[0], columns)
