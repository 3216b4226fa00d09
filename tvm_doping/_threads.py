"""The threads of a session: a pool that the bundle's own library opens, closes and runs its kernels in (kernels/pool.c)."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from tvm_doping.errors import InvalidInput, SessionError

_Result = TypeVar("_Result")

# How long a region waits for a thread whose core is taken by another program (kernels/pool.c), in ns: several times what one
# that sleeps needs to wake up. And for how many times what late threads cost the calling one then runs alone: the loss is 3 %.
PATIENCE, REST = 200_000, 32


class Pool:
    """`threads` threads, the calling one among them; the others sleep soon after a call and end with close().

    A process that forks gets threads of its own at the next call: those of its parent are not in it.
    """

    def __init__(self, library: Any, threads: int, pin: bool) -> None:
        self._open, self._use, self._close, self._regions = (
            library.get_function(f"doping_{word}", True) for word in ("open", "use", "close", "regions")
        )
        self.threads = threads
        self._cores = cores()[1:threads] if pin else [-1] * (threads - 1)
        self._begin()

    @property
    def regions(self) -> list[int]:
        """How many regions each of the threads but the calling one has run."""
        return [self._regions(self._handle, worker) for worker in range(self.threads - 1)]

    def run(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """function(*arguments), the kernels in it on all threads."""
        if os.getpid() != self._process:
            self._begin()
        self._use(self._handle)
        try:
            return function(*arguments)
        finally:
            self._use(0)  # the thread may go on to call another session

    def close(self) -> None:
        """End the threads."""
        self._finish()

    def _begin(self) -> None:
        self._handle, self._process = self._open(PATIENCE, REST, *self._cores), os.getpid()
        if not self._handle:
            raise SessionError(
                "threads",
                f"{len(self._cores)} new threads",
                "the system starts no more",
                "Load with fewer threads.",
            )
        self._finish = weakref.finalize(self, _end, self._close, self._handle, self._process)


def open_pool(library: Any, threads: int, pin: bool) -> Pool | None:
    """The pool of a session; None where one thread does all: it is alone, or no kernel of the library shares its work.

    More threads than there are cores would only wait for each other, and results do not depend on how many there are.
    """
    try:
        library.get_function("doping_install", True)()  # of the code, which the executable imports
    except AttributeError:
        return None
    threads = min(threads, len(cores()))
    return Pool(library, threads, pin) if threads > 1 else None


def cores() -> list[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def check_threads(threads: Any, pin: bool, compiled: int, name: str) -> int:
    """How many threads a session of a bundle runs on: as given, else as compiled for. InvalidInput for what cannot be."""
    if threads is None:
        threads = compiled
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= MOST:
        raise InvalidInput(
            "threads",
            f"a whole number, 1 to {MOST}",
            repr(threads),
            "Leave it out for the number the bundle was compiled for.",
        )
    if threads > 1 and compiled == 1:
        raise InvalidInput(
            f"threads of {name!r}",
            "1, as it was compiled for one thread",
            str(threads),
            f"Make it with compile(threads={threads}): it then runs on any number.",
        )
    if pin:
        most = len(cores()) if hasattr(os, "sched_getaffinity") else 0
        if threads > most:
            raise InvalidInput(
                "threads",
                f"at most {most}, one for each core that may be pinned",
                str(threads),
                "Leave out pin, or ask for fewer.",
            )
    return threads


MOST = 256  # more than any machine's cores that one layer can keep busy: a typing error is told before it starts threads


def _end(close: Any, handle: int, process: int) -> None:
    if os.getpid() == process:
        close(handle)
