"""The memory of a stream on a GPU: buffers that stay where they are while steps go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tvm_doping._runtime import current_stream
from tvm_doping.cuda.arrays import Blocks, nbytes, put, to_host
from tvm_doping.cuda.graph import StepGraph
from tvm_doping.cuda.library import Cuda
from tvm_doping.cuda.order import Order
from tvm_doping.manifest import Manifest, TensorSpec
from tvm_doping.signature import sizes, timeless


class CudaStream:
    """The state of a stream of fixed sizes, the inputs of one step, and the graph that replays it, or why there is none."""

    def __init__(
        self, manifest: Manifest, symbols: Mapping[str, int], library: Cuda, blocks: Blocks, order: Order
    ) -> None:
        self.symbols = dict(symbols)
        self._cuda, self._blocks, self._order = library, blocks, order
        self.state = [blocks.take(sizes(spec, symbols), spec.dtype) for spec in manifest.state]
        self.slots: list[Slot] = []
        self.graph: StepGraph | None = None
        self.why_not = ""  # "" before the first step

    def clear(self) -> None:
        """The zero state."""
        with self._order.on(stream := current_stream()):
            for buffer in self.state:
                self._cuda.fill(buffer.data_ptr(), 0, nbytes(buffer), stream)

    def read_state(self) -> list[np.ndarray]:
        """A copy of the state, on the host."""
        return to_host(self._cuda, self.state, self._order, current_stream())

    def write_state(self, arrays: Sequence[Any]) -> None:
        """Set it, to NumPy arrays or tensors of the same shapes."""
        with self._order.on(stream := current_stream()):
            for buffer, array in zip(self.state, arrays, strict=True):
                put(self._cuda, array, buffer, stream)

    def open_slots(self, specs: Sequence[TensorSpec], symbols: Mapping[str, int]) -> None:
        """Make the buffers that step() copies its inputs into, which a graph reads."""
        self.slots = [Slot(spec, symbols, self._blocks) for spec in specs]

    def close(self) -> None:
        """Give back the graph."""
        if self.graph is not None:
            self.graph.close()
            self.graph, self.why_not = None, "closed"


class Slot:
    """The buffer of one input of step(), with a time axis of 1; `shape` is without it."""

    def __init__(self, spec: TensorSpec, symbols: Mapping[str, int], blocks: Blocks) -> None:
        self.spec, self.dtype = spec, np.dtype(spec.dtype)
        self.shape = sizes(timeless(spec), symbols)
        self.buffer = blocks.take(sizes(spec, {**symbols, "T": 1}), spec.dtype)
