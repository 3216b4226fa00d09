"""Worker processes: requests go out, replies come back as they are ready, whatever becomes of a worker."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

# Seconds beyond a request's own time-out until the worker itself is taken for dead: it may wait long for other jobs on the machine.
_GRACE = 3600.0
# How often a request is tried that ended so: a device may disappear, or fall silent; a worker may be killed for memory. What is too
# slow for this machine, or crashes on it, is so every time.
_LIVES = {"device": 3, "worker": 3}
_LIVES_OF_SILENCE = 2
# One thread each: libraries that start as many as there are cores would slow each other down, and forking wants none.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS")


class Workers:
    """`count` processes of tvm_doping.tuning.worker; none of them, nor of their children, is left after `close`."""

    def __init__(self, count: int) -> None:
        self.count, self.waiting = count, selectors.DefaultSelector()
        self.workers: list[_Worker] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def run(self, requests: Mapping[Hashable, dict[str, Any]]) -> Iterator[tuple[Hashable, dict[str, Any]]]:
        """(name, reply) of each request in the order in which they are ready."""
        try:
            yield from self._run(requests)
        finally:  # who does not wait for the rest wants nothing of it
            for worker in [w for w in self.workers if w.busy]:
                self._stop(worker)

    def _run(self, requests: Mapping[Hashable, dict[str, Any]]) -> Iterator[tuple[Hashable, dict[str, Any]]]:
        queue = deque((name, request, 1) for name, request in requests.items())
        while len(self.workers) < min(self.count, len(queue)):
            self._start()
        while queue or any(worker.busy for worker in self.workers):
            for worker in self.workers:
                if not worker.busy and queue:
                    worker.take(*queue.popleft())
            left = min(worker.left for worker in self.workers if worker.busy)
            ready = {key.data for key, _ in self.waiting.select(max(0.0, left))}
            for worker in [w for w in self.workers if w.busy]:
                if worker not in ready and worker.left > 0:
                    continue
                reply = worker.reply() if worker in ready else None
                name, request, life = worker.busy
                if reply is None:
                    reply = {"error": "the worker ended", "kind": "worker", "seconds": 0.0}
                    self._stop(worker)
                    self._start()
                elif "ready" in reply:
                    continue
                worker.busy = ()
                if life < _lives(reply, request):
                    queue.append((name, request, life + 1))
                else:
                    yield name, {**reply, "tries": life}

    def close(self) -> None:
        """Kill all of them."""
        for worker in list(self.workers):
            self._stop(worker)
        self.waiting.close()

    def _start(self) -> None:
        worker = _Worker()
        self.workers.append(worker)
        self.waiting.register(worker.output, selectors.EVENT_READ, worker)

    def _stop(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        self.waiting.unregister(worker.output)
        worker.kill()


class _Worker:
    """One process, and the request that it works on: (name, request, how often it was tried), or ()."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tvm_doping.tuning.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **dict.fromkeys(_THREADS, "1")},
            start_new_session=True,  # Ctrl-C is for the parent, which ends its workers
        )
        self.busy: Any = ()
        self.end = 0.0
        self.text = b""

    @property
    def output(self) -> int:
        """The end of its pipe that replies come from."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    @property
    def left(self) -> float:
        """Seconds until it has to have replied."""
        return self.end - time.monotonic()

    def take(self, name: Hashable, request: dict[str, Any], life: int) -> None:
        self.busy, self.end = (name, request, life), time.monotonic() + request["timeout"] + _GRACE
        with suppress(BrokenPipeError):  # its end is noticed where its reply is read
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()

    def reply(self) -> dict[str, Any] | None:
        """The next line it wrote; {"ready"} while that is not whole; None at its end."""
        some = os.read(self.output, 1 << 16)
        if not some:
            return None
        self.text += some
        line, newline, rest = self.text.partition(b"\n")
        if not newline:
            return {"ready": False}
        self.text = rest
        return dict(json.loads(line))

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def _lives(reply: dict[str, Any], request: dict[str, Any]) -> int:
    silent = reply.get("kind") == "time-out" and request["job"]["device"]
    return _LIVES_OF_SILENCE if silent else _LIVES.get(reply.get("kind", ""), 1)
