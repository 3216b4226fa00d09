"""One step as a CUDA graph: the kernels that the virtual machine called once, written down on buffers that stay, and replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tvm_doping._runtime import new_machine, on_stream, weights_of
from tvm_doping.cuda.arrays import nbytes, overlap, to_host
from tvm_doping.cuda.library import Cuda
from tvm_doping.cuda.order import Order, machines
from tvm_doping.replay import observed

Calls = list[tuple[Any, tuple[Any, ...]]]


class NotCaptured(Exception):
    """Why a step cannot be captured."""


class StepGraph:
    """The graphs of a step with these buffers: of its kernels and the copies of the state, and of these with copies from and to the
    host around them.

    outputs  where the kernels write; shapes: theirs as a step returns them, set by the session;
    host_inputs, host_outputs  pinned arrays, for `launch_from_host`.

    The kernels' workspace is that of the thread which captured them, TVM's rule: a thread of the graph's own, which waits until
    `close`, so that no other call gets that memory. Raises NotCaptured where a step is more than calls of kernels.
    """

    def __init__(
        self,
        library: Cuda,
        code: Any,
        inputs: Sequence[Any],
        state: Sequence[Any],
        weights: Any,
        count: int,
        order: Order,
    ) -> None:
        self._cuda, self._graphs, self._frees = library, list[int](), list[Callable[[], None]]()
        self._inputs, self._state, self._count = list(inputs), list(state), count
        self._order = order
        self._calls: Calls = []
        self.outputs: list[Any] = []
        self.shapes: list[tuple[int, ...]] = []
        self.host_inputs: list[np.ndarray] = []
        self.host_outputs: list[np.ndarray] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tvm-doping-graph")
        try:
            self._thread.submit(self._capture, code, weights).result()
        except BaseException:
            self.close()
            raise

    def launch(self, stream: int) -> None:
        """One step from the inputs' buffers to the outputs'."""
        self._cuda.launch(self._graphs[0], stream)

    def launch_from_host(self, stream: int) -> None:
        """One step from `host_inputs` to `host_outputs`."""
        self._cuda.launch(self._graphs[1], stream)

    def close(self) -> None:
        """Give back the graphs, the pinned memory and the workspace; nothing of it may be in use."""
        for graph in self._graphs:
            self._cuda.free(graph=graph)
        for free in self._frees:
            free()
        self._graphs, self._frees = [], []
        self.host_inputs, self.host_outputs, self._calls = [], [], []
        self._thread.shutdown(wait=True)

    def _capture(self, code: Any, weights: Any) -> None:
        """In the graph's own thread, on a stream of its own."""
        stream = self._cuda.stream()
        try:
            self._order.reach(stream)
            with on_stream(stream):
                self._calls, results = self._observe(code, weights, stream)
                self._check(results, stream)
                self.outputs = results[: self._count]
                self._pin()
                carried = list(zip(self._state, results[self._count :], strict=True))
                self._graphs.append(self._written(stream, [], carried))
                ins = list(zip(self._inputs, self.host_inputs, strict=True))
                outs = list(zip(self.host_outputs, self.outputs, strict=True))
                self._graphs.append(self._written(stream, ins, [*carried, *outs]))
        finally:
            self._cuda.free(stream=stream)

    def _observe(self, code: Any, weights: Any, stream: int) -> tuple[Calls, list[Any]]:
        """One step on a virtual machine: the kernels it called, and their results."""
        with machines().on(stream):
            results, calls, strange = observed(
                new_machine(code, True), self._inputs, self._state, weights, self._count
            )
        self._cuda.synchronize(stream)
        if strange:
            raise NotCaptured(f"a step does more than call kernels: {', '.join(sorted(set(strange)))}")
        given = [*self._inputs, *self._state, *weights_of(weights)]
        if any(overlap(a, b) for a in results for b in given):
            raise NotCaptured("a result is an input, a weight or the state itself")
        if any(a.shape != b.shape for a, b in zip(self._state, results[self._count :], strict=True)):
            raise NotCaptured("a step changes the state's shape")
        return calls, results

    def _check(self, results: list[Any], stream: int) -> None:
        """The calls must give what the machine gave, bit by bit. Also makes the workspace: no memory is had during a capture."""
        order = Order(self._cuda)
        expected = to_host(self._cuda, results, order, stream)
        for result in results:
            self._cuda.fill(result.data_ptr(), 0xFF, nbytes(result), stream)
        self._make_calls()
        got = to_host(self._cuda, results, order, stream)
        if any(a.tobytes() != b.tobytes() for a, b in zip(got, expected, strict=True)):
            raise NotCaptured("the kernels of a step give another result when called again")

    def _make_calls(self) -> None:
        for kernel, arguments in self._calls:
            kernel(*arguments)

    def _pin(self) -> None:
        for tensors, arrays in ((self._inputs, self.host_inputs), (self.outputs, self.host_outputs)):
            for tensor in tensors:
                array, free = self._cuda.pinned(tuple(tensor.shape), np.dtype(str(tensor.dtype)))
                arrays.append(array)
                self._frees.append(free)

    def _written(
        self, stream: int, before: Sequence[tuple[Any, Any]], after: Sequence[tuple[Any, Any]]
    ) -> int:
        """The graph of copies (to, from), the kernels, and copies."""
        self._cuda.begin_capture(stream)
        try:
            self._copies(before, stream)
            self._make_calls()
            self._copies(after, stream)
        except BaseException:
            self._cuda.drop_capture(stream)
            raise
        return self._cuda.end_capture(stream)

    def _copies(self, pairs: Sequence[tuple[Any, Any]], stream: int) -> None:
        for to, source in pairs:
            self._cuda.copy(_address(to), _address(source), _size(to), stream)


def _address(place: Any) -> int:
    return int(place.ctypes.data if isinstance(place, np.ndarray) else place.data_ptr())


def _size(place: Any) -> int:
    return place.nbytes if isinstance(place, np.ndarray) else nbytes(place)
