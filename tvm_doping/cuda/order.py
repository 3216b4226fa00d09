"""Calls that share memory, one after the other on the GPU, whatever streams they are made on."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import RLock

from tvm_doping.cuda.library import Cuda, cuda


class Order:
    """On one stream work is done in the order of the calls anyway. Where the stream changes, the new one waits for the old one's
    work, which an event at the end of each call stands for: streams may be destroyed between calls. Nothing waits on the host.
    """

    def __init__(self, library: Cuda) -> None:
        self._cuda, self._event, self._lock = library, library.event(), RLock()
        self._last: int | None = None
        weakref.finalize(self, library.free, event=self._event).atexit = False

    @contextmanager
    def on(self, stream: int) -> Iterator[None]:
        """Within it, work for the stream is behind that of all calls before; another thread's call waits until it ends."""
        with self._lock:
            self.reach(stream)
            try:
                yield
            finally:
                self._cuda.record(self._event, stream)
                self._last = stream

    def reach(self, stream: int) -> None:
        """Let the stream wait for the calls so far."""
        if self._last not in (None, stream):
            self._cuda.wait(stream, self._event)


@lru_cache(maxsize=1)
def machines() -> Order:
    """The order of all calls of virtual machines in this process: TVM keeps what one of them lets go of, and the workspace of
    kernels, for the next that asks, which is right on one stream only.
    """
    return Order(cuda())
