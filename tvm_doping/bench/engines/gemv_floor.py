"""The least a dense fp32 LSTM can do: its matrix products alone, no gates, by the fastest of several ways.

At T = 1 and N = 1 this is reading every weight once, so it is the bandwidth of whatever memory holds them. At
larger T it is no strict bound: a runtime that packs its weights may beat a BLAS that cannot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from tvm_doping.bench.engines.stream import Stream
from tvm_doping.bench.subject import Subject
from tvm_doping.build import compile
from tvm_doping.runtime import Session


def engine(subject: Subject, *, threads: int, precision: str) -> GemvFloor:
    """The products of the subject's layers (and decoder) on `threads` threads."""
    return GemvFloor(subject, threads)


class GemvFloor:
    """[W_ih W_hh] [x; h] a layer and step; where T > 1, W_ih for all steps at once and W_hh step by step."""

    def __init__(self, subject: Subject, threads: int) -> None:
        threadpool_limits(limits=threads, user_api="blas")  # of this process, until it is set again
        torch.set_num_threads(threads)
        self.subject = subject
        # NumPy's memory is on huge pages where the system has them, which matters to reading at full speed
        self.pairs = [(layer.w_ih.copy(), layer.w_hh.copy()) for layer in subject.layers]
        self.joined = [np.concatenate(pair, axis=1) for pair in self.pairs]
        self.decoder = [] if subject.decoder is None else [subject.decoder[0]]

    def open(self, steps: int, batch: int) -> Stream:
        """Products with ones; what they hold does not matter to their time."""
        ways = {"BLAS": self._blas(steps, batch)}
        if steps == batch == 1:
            ways["TVM"] = _compiled([*self.joined, *self.decoder])
        best = min(ways, key=lambda way: _seconds(ways[way]))
        chosen = ways[best]

        def call(x: np.ndarray) -> None:
            chosen()

        return Stream(call=call, reset=lambda: None, note=f"matrix products only, by {best}")

    def _blas(self, steps: int, batch: int) -> Callable[[], object]:
        products: list[Callable[[], object]] = []
        if steps == 1:
            products += [_product(w, batch) for w in self.joined]
        else:
            for w_ih, w_hh in self.pairs:
                products += [_product(w_ih, steps * batch), *[_product(w_hh, batch)] * steps]
        products += [_product(w, steps * batch) for w in self.decoder]

        def call() -> None:
            with torch.inference_mode():
                for product in products:
                    product()

        return call


def _product(w: np.ndarray, columns: int) -> Callable[[], object]:
    """w times a matrix of so many columns, by NumPy or torch, whichever is faster here.

    For one column also w's inner product with itself: it too reads every weight once, in the simplest order.
    """
    shape = (columns,) if columns > 1 else ()
    operand = np.ones((w.shape[1], *shape), "float32")
    out = np.empty((w.shape[0], *shape), "float32")
    multiply = torch.mm if columns > 1 else torch.mv
    ways: list[Callable[[], object]] = [
        partial(np.dot, w, operand, out=out),
        partial(multiply, *map(torch.from_numpy, (w, operand)), out=torch.from_numpy(out)),
    ]
    if columns == 1:
        flat = w.reshape(-1)
        ways.append(partial(np.dot, flat, flat))
    return min(ways, key=_seconds)


def _compiled(weights: list[np.ndarray]) -> Callable[[], object]:
    """Every weight times a vector in one call of compiled code, whose order of reading suits memory."""

    class Products(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [torch.nn.Linear(w.shape[1], w.shape[0], bias=False) for w in weights]
            for layer, w in zip(layers, weights, strict=True):
                layer.weight.data = torch.from_numpy(w)
            self.layers, self.widths = torch.nn.ModuleList(layers), [w.shape[1] for w in weights]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pairs = zip(self.layers, self.widths, strict=True)
            return torch.cat([layer(x[:, :width]) for layer, width in pairs], dim=1)

    x = np.ones((1, max(w.shape[1] for w in weights)), "float32")
    module = Products().eval()
    bundle = compile(module, example=(torch.from_numpy(x),), force={"structure": "dense"})
    return partial(Session(bundle).run, x)


def _seconds(call: Callable[[], object]) -> float:
    times = []
    for _ in range(8):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
