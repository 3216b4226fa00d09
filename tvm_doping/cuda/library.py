"""CUDA's runtime library, by the calls that sessions make of it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from tvm_doping._runtime import load_cuda_runtime
from tvm_doping.errors import SessionError

_P, _I, _U, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_size_t
_OUT = ctypes.POINTER(ctypes.c_void_p)
_CALLS: dict[str, tuple[Any, ...]] = {
    "cudaEventCreateWithFlags": (_OUT, _U),
    "cudaEventDestroy": (_P,),
    "cudaEventElapsedTime": (ctypes.POINTER(ctypes.c_float), _P, _P),
    "cudaEventRecord": (_P, _P),
    "cudaEventSynchronize": (_P,),
    "cudaFreeHost": (_P,),
    "cudaGraphDestroy": (_P,),
    "cudaGraphExecDestroy": (_P,),
    "cudaGraphInstantiate": (_OUT, _P, ctypes.c_ulonglong),
    "cudaGraphLaunch": (_P, _P),
    "cudaMallocHost": (_OUT, _SIZE),
    "cudaMemcpyAsync": (_P, _P, _SIZE, _I, _P),
    "cudaMemsetAsync": (_P, _I, _SIZE, _P),
    "cudaStreamBeginCapture": (_P, _I),
    "cudaStreamCreateWithFlags": (_OUT, _U),
    "cudaStreamDestroy": (_P,),
    "cudaStreamEndCapture": (_P, _OUT),
    "cudaStreamSynchronize": (_P,),
    "cudaStreamWaitEvent": (_P, _P, _U),
}
# cudaEventDisableTiming; cudaStreamNonBlocking: no order with the legacy default stream; cudaStreamCaptureModeThreadLocal: what
# other threads do meanwhile is no error; cudaMemcpyDefault: the addresses tell where they lie.
_NO_TIMING, _NON_BLOCKING, _OF_THIS_THREAD, _DEFAULT = 2, 1, 1, 4


class CudaError(SessionError):
    """What a call of CUDA's runtime library gave in place of a result."""


class Cuda:
    """Streams and events are handles, as integers; stream 0 is the legacy default stream. Each call raises CudaError."""

    def __init__(self) -> None:
        load_cuda_runtime()
        library = ctypes.CDLL("libcudart.so.13")  # the one that TVM's runtime has loaded
        self._functions = {name: getattr(library, name) for name in _CALLS}
        for name, function in self._functions.items():
            function.argtypes = _CALLS[name]
        self._text = library.cudaGetErrorString
        self._text.restype = ctypes.c_char_p

    def _call(self, name: str, *arguments: Any) -> None:
        code = self._functions[name](*arguments)
        if code:
            raise CudaError(
                name,
                "a GPU that carries on",
                f"{(self._text(code) or b'').decode(errors='replace')} (error {code})",
                "Errors of kernels show at a later call: CUDA_LAUNCH_BLOCKING=1 in the environment tells which.",
            )

    def _made(self, name: str, *arguments: Any) -> int:
        out = ctypes.c_void_p()
        self._call(name, ctypes.byref(out), *arguments)
        return out.value or 0

    def stream(self) -> int:
        """A new stream that waits for no other by itself."""
        return self._made("cudaStreamCreateWithFlags", _NON_BLOCKING)

    def event(self, *, timed: bool = False) -> int:
        """A new event; timed: one that notes when it came."""
        return self._made("cudaEventCreateWithFlags", 0 if timed else _NO_TIMING)

    def free(self, *, stream: int = 0, event: int = 0, graph: int = 0) -> None:
        """Give back what the methods above and `end_capture` made."""
        for name, handle in (
            ("cudaStreamDestroy", stream),
            ("cudaEventDestroy", event),
            ("cudaGraphExecDestroy", graph),
        ):
            if handle:
                self._call(name, handle)

    def record(self, event: int, stream: int) -> None:
        """Let the event be the end of the stream as it is now."""
        self._call("cudaEventRecord", event, stream)

    def elapsed(self, start: int, end: int) -> float:
        """Microseconds of the GPU from one timed event to the other, which is waited for."""
        milliseconds = ctypes.c_float()
        self._call("cudaEventSynchronize", end)
        self._call("cudaEventElapsedTime", ctypes.byref(milliseconds), start, end)
        return 1e3 * milliseconds.value

    def wait(self, stream: int, event: int) -> None:
        """Let what comes next on the stream wait for the event; an event never recorded is none to wait for."""
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def synchronize(self, stream: int) -> None:
        """Wait here until the stream has done all of its work."""
        self._call("cudaStreamSynchronize", stream)

    def copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Copy bytes between addresses, on the host or the GPU, in the order of the stream."""
        self._call("cudaMemcpyAsync", to, source, size, _DEFAULT, stream)

    def fill(self, to: int, byte: int, size: int, stream: int) -> None:
        """Set bytes of the GPU's memory, in the order of the stream."""
        self._call("cudaMemsetAsync", to, byte, size, stream)

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[np.ndarray, Callable[[], None]]:
        """An array in memory of the host that the GPU reads and writes by itself, and what frees it."""
        size = max(1, int(np.prod(shape)) * dtype.itemsize)
        address = self._made("cudaMallocHost", size)
        buffer = (ctypes.c_char * size).from_address(address)
        array = np.frombuffer(memoryview(buffer).cast("B"), dtype, int(np.prod(shape))).reshape(shape)
        return array, lambda: self._call("cudaFreeHost", address)

    def begin_capture(self, stream: int) -> None:
        """From now on the stream's work is written down and not done."""
        self._call("cudaStreamBeginCapture", stream, _OF_THIS_THREAD)

    def end_capture(self, stream: int) -> int:
        """The graph of what was written down, ready to be launched."""
        graph = ctypes.c_void_p()
        self._call("cudaStreamEndCapture", stream, ctypes.byref(graph))
        try:
            return self._made("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def drop_capture(self, stream: int) -> None:
        """End it, where that is still to be done, and throw away what was written down."""
        graph = ctypes.c_void_p()
        self._functions["cudaStreamEndCapture"](stream, ctypes.byref(graph))
        if graph.value:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        """Do all of a graph's work, in the order of the stream."""
        self._call("cudaGraphLaunch", graph, stream)


@lru_cache(maxsize=1)
def cuda() -> Cuda:
    """The library, loaded once. Raises BundleError where it or the driver is missing."""
    return Cuda()
