"""A GPU of this machine as a place where candidates run, and their time by its own events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tvm_doping._runtime import on_stream
from tvm_doping._tvm import tvm
from tvm_doping.cuda.library import cuda

# Calls in one graph: what a CPU takes to launch a graph would hide a kernel of a few microseconds.
_TOGETHER = 16


class Events(Protocol):
    """What timing asks of CUDA's runtime library (`cuda.library.Cuda`); streams and events are handles."""

    def event(self, *, timed: bool = False) -> int: ...
    def record(self, event: int, stream: int) -> None: ...
    def elapsed(self, start: int, end: int) -> float: ...
    def free(self, *, event: int = 0) -> None: ...


def elapsed(library: Events, stream: int, launch: Callable[[], object], times: int) -> float:
    """Microseconds that the GPU takes for what `launch`, called so often, puts on the stream: between two events of its own."""
    start, end = library.event(timed=True), library.event(timed=True)
    try:
        library.record(start, stream)
        for _ in range(times):
            launch()
        library.record(end, stream)
        return library.elapsed(start, end)
    finally:
        for event in (start, end):
            library.free(event=event)


class Gpu:
    """The first GPU, for a process that measures and ends: its stream and graphs end with it.

    Raises BundleError where the driver or CUDA's runtime library is missing.
    """

    def __init__(self) -> None:
        self.cuda = cuda()
        self.where = tvm.cuda()
        self.stream = self.cuda.stream()

    def load(self, library: Path) -> Any:
        return tvm.runtime.load_module(str(library))

    def put(self, array: np.ndarray) -> Any:
        return tvm.runtime.tensor(array, self.where)

    def timer(self, module: Any, name: str, arguments: Sequence[Any], steps: int) -> Callable[[int], float]:
        """Microseconds a call, as sessions make them: a step replayed from a graph, more steps launched call by call."""
        function = module.get_function(name, True)

        def call() -> None:
            with on_stream(self.stream):
                function(*arguments)

        self.cuda.synchronize(0)  # where the arguments were copied
        call()  # takes its workspace, which cannot be had while a graph is captured
        self.cuda.synchronize(self.stream)
        if steps > 1:
            return lambda number: elapsed(self.cuda, self.stream, call, number) / number
        self.cuda.begin_capture(self.stream)
        try:
            for _ in range(_TOGETHER):
                call()
        except BaseException:
            self.cuda.drop_capture(self.stream)
            raise
        graph = self.cuda.end_capture(self.stream)

        def replayed(number: int) -> float:
            times = -(-number // _TOGETHER)
            launch = lambda: self.cuda.launch(graph, self.stream)  # noqa: E731
            return elapsed(self.cuda, self.stream, launch, times) / (times * _TOGETHER)

        return replayed
