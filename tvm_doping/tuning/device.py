"""Where a candidate runs: in this process, or on a machine that an RPC tracker lends; on a GPU: `gpu.Gpu`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tvm_doping._tvm import tvm
from tvm_doping.arrays import aligned_copy
from tvm_doping.remote import borrow

_SESSION = 120  # seconds that a machine is lent for one candidate


class Device(Protocol):
    """where: TVM's name of the device's memory."""

    where: Any

    def load(self, library: Path) -> Any:
        """The library's module, on the device."""

    def put(self, array: np.ndarray) -> Any:
        """The array, on the device."""

    def timer(self, module: Any, name: str, arguments: Sequence[Any], steps: int) -> Callable[[int], float]:
        """What gives the microseconds of a call of a function, the mean of so many in a row; steps: the T of its arguments."""


class Local:
    """This machine."""

    def __init__(self) -> None:
        self.where = tvm.cpu()

    def load(self, library: Path) -> Any:
        return tvm.runtime.load_module(str(library))

    def put(self, array: np.ndarray) -> Any:
        return tvm.runtime.from_dlpack(aligned_copy(array))

    def timer(self, module: Any, name: str, arguments: Sequence[Any], steps: int) -> Callable[[int], float]:
        return _evaluated(module, name, self.where, arguments)


class Remote:
    """A machine of "HOST:PORT KEY": TVM's tracker at HOST:PORT waits for one registered as KEY, and lends it."""

    def __init__(self, tracker: str) -> None:
        address, key = tracker.split(" ", 1)
        self.session = borrow(address, key, _SESSION)
        self.where = self.session.cpu()
        self.loaded: dict[Path, Any] = {}

    def load(self, library: Path) -> Any:
        if (
            library not in self.loaded
        ):  # a file that is written over while its code is loaded crashes the device's process
            name = f"{len(self.loaded)}-{library.name}"
            self.session.upload(
                bytearray(library.read_bytes()), name
            )  # of a path it would leave the file open
            self.loaded[library] = self.session.load_module(name)
        return self.loaded[library]

    def put(self, array: np.ndarray) -> Any:
        return tvm.runtime.tensor(array, self.where)

    def timer(self, module: Any, name: str, arguments: Sequence[Any], steps: int) -> Callable[[int], float]:
        return _evaluated(module, name, self.where, arguments)


def _evaluated(module: Any, name: str, where: Any, arguments: Sequence[Any]) -> Callable[[int], float]:
    """By TVM's own clock."""

    def time(number: int) -> float:
        evaluator = module.time_evaluator(name, where, number=number, repeat=1)
        return 1e6 * float(evaluator(*arguments).mean)

    return time
