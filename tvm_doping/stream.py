"""The memory of a stream: buffers that stay where they are while steps go by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tvm_doping._runtime import from_dlpack
from tvm_doping.arrays import aligned_empty, aligned_zeros
from tvm_doping.manifest import Manifest, TensorSpec
from tvm_doping.replay import Replay
from tvm_doping.signature import sizes, timeless


class Stream:
    """The buffers of a stream of fixed sizes: its state, and the inputs of one step."""

    def __init__(self, manifest: Manifest, symbols: Mapping[str, int]) -> None:
        self.symbols = dict(symbols)
        self.state = [aligned_zeros(sizes(spec, symbols), spec.dtype) for spec in manifest.state]
        self.state_tensors = [from_dlpack(array) for array in self.state]
        self.slots: list[Slot] = []
        self.step_tensors: list[Any] = []
        self.recorded = False
        self.replay: Replay | None = None

    def clear(self) -> None:
        """The zero state."""
        for buffer in self.state:
            buffer.fill(0)

    def read_state(self) -> list[np.ndarray]:
        """A copy of the state."""
        return [buffer.copy() for buffer in self.state]

    def write_state(self, arrays: Sequence[np.ndarray]) -> None:
        """Set it, to arrays of the same shapes."""
        for buffer, array in zip(self.state, arrays, strict=True):
            buffer[...] = array

    def open_slots(self, specs: Sequence[TensorSpec], symbols: Mapping[str, int]) -> None:
        """Make the buffers that step() copies its inputs into: that costs less than to look how each is
        aligned.
        """
        self.slots = [Slot(spec, symbols) for spec in specs]
        self.step_tensors = [from_dlpack(slot.buffer) for slot in self.slots]


class Slot:
    """The buffer of one input of step(): `buffer` with a time axis of 1, `view` the same without it."""

    __slots__ = ("below", "buffer", "dtype", "shape", "spec", "view")

    def __init__(self, spec: TensorSpec, symbols: Mapping[str, int]) -> None:
        self.spec, self.below = spec, spec.below
        self.dtype = np.dtype(spec.dtype)
        self.buffer = aligned_empty(sizes(spec, {**symbols, "T": 1}), self.dtype)
        self.shape = sizes(timeless(spec), symbols)
        self.view = self.buffer.reshape(self.shape)
