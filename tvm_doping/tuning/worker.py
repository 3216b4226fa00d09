"""The process that measures: TVM imported once, a child forked for each candidate, replies as lines of JSON.

A candidate that crashes or hangs takes only its child with it; a new worker would import for seconds. It ends when its
parent does, however that ended, and takes a running child with it.

    python -m tvm_doping.tuning.worker     reads requests from standard input, writes replies to standard output
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tvm_doping.errors import DopingError
from tvm_doping.kernels import LinearPlan, LstmPlan
from tvm_doping.structures import Structure
from tvm_doping.structures.spec import from_spec, to_spec
from tvm_doping.targets import Target
from tvm_doping.tuning.measure import Job, LoopPlan, measure

_PLANS: dict[str, Any] = {"lstm": LstmPlan, "linear": LinearPlan, "loops": LoopPlan}
_WAITS, _GOES_ON = b"\x01", b"\x02"  # what a child writes while it waits for a lock: nothing that JSON has
_DEATH = 1  # prctl's PR_SET_PDEATHSIG


def main() -> None:
    """Serve until standard input ends."""
    _die_with_parent()
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what compilers print must not be taken for a reply
    print(json.dumps({"ready": os.getpid()}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(_in_child(json.loads(line))), file=replies, flush=True)


def request(
    plans: list[Any],
    operation: str,
    weights: Path,
    target: Target,
    job: Job,
    timeout: float,
    rounds: int | None = None,
    known: Mapping[int, float] | None = None,
) -> dict[str, Any]:
    """What `main` reads: plans of an operation, of the layer whose weights `save_weights` wrote.

    A reply has "us", what `measure` returns, or "error" and its "kind", and "seconds".
    """
    return {
        "operation": operation,
        "plans": [plan.to_json() for plan in plans],
        "weights": str(weights),
        "target": asdict(target),
        "job": asdict(job),
        "timeout": timeout,
        "known": {str(T): us for T, us in (known or {}).items()},
        **({} if rounds is None else {"rounds": rounds}),
    }


def save_weights(path: Path, weights: dict[str, Structure]) -> None:
    """The structures of a layer as one .npz."""
    arrays = {f"{name}/{key}": a for name, w in weights.items() for key, a in w.arrays().items()}
    specs = json.dumps({name: to_spec(w) for name, w in weights.items()})
    everything: dict[str, Any] = {"specs": np.array(specs), **arrays}
    np.savez(path, **everything)


@lru_cache(maxsize=4)
def _weights(path: str) -> dict[str, Structure] | str:
    """The structures of a layer that `save_weights` wrote, or the text of a module of loops."""
    if not path.endswith(".npz"):
        return Path(path).read_text()
    with np.load(path) as file:
        specs = json.loads(str(file["specs"]))
        return {
            name: from_spec(
                spec, {key.removeprefix(f"{name}/"): file[key] for key in file if key.startswith(f"{name}/")}
            )
            for name, spec in specs.items()
        }


def _in_child(wanted: dict[str, Any]) -> dict[str, Any]:
    """The reply of a child; its death or delay is one too."""
    start = time.perf_counter()
    with suppress(OSError, ValueError):  # the child tells of it
        _weights(wanted["weights"])  # read once, for all children
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _child(wanted, write)
    os.close(write)
    try:
        reply = _reply(read, start + wanted["timeout"])
    finally:
        os.close(read)
        # its compiler, if it has one running, is of its group
        for kill in (os.killpg, os.kill):
            try:
                kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _, status = os.waitpid(child, 0)
    if reply is None:
        reply = {"error": f"timed out after {wanted['timeout']:g} s", "kind": "time-out"}
    elif not reply:
        died = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status >> 8}"
        reply = {"error": f"crashed: {died}", "kind": "crash"}
    return {**reply, "seconds": round(time.perf_counter() - start, 3)}


def _reply(read: int, end: float) -> dict[str, Any] | None:
    """What the child wrote, {} if it ended without a word, None if time is up: that in which it waits for others is not counted."""
    text, since = b"", None
    while True:
        now = time.perf_counter()
        if since is None and now >= end:
            return None
        ready, _, _ = select.select([read], [], [], 1.0 if since else min(end - now, 1.0))
        if not ready:
            continue
        some = os.read(read, 1 << 16)
        if not some:
            return json.loads(text) if text else {}
        if since is None and _WAITS in some:
            since = time.perf_counter()
        if since is not None and _GOES_ON in some:
            end, since = end + time.perf_counter() - since, None
        text += some.replace(_WAITS, b"").replace(_GOES_ON, b"")


def _child(wanted: dict[str, Any], write: int) -> None:
    """Measure, write the reply and end; never returns."""
    try:
        os.setpgid(0, 0)
        _die_with_parent()
        if wanted["job"][
            "kept"
        ]:  # what compilers and linkers leave behind when they are killed goes with the job's libraries
            os.environ["TMPDIR"] = tempfile.tempdir = wanted["job"]["kept"]
        plans = [_PLANS[wanted["operation"]].from_json(text) for text in wanted["plans"]]
        target = Target(
            **{**wanted["target"], **{k: tuple(wanted["target"][k]) for k in ("mattr", "features")}}
        )
        raw = wanted["job"]
        job = Job(**{**raw, **{key: tuple(raw[key]) for key in ("steps", "cores", "locks")}})
        more: dict[str, Any] = {"rounds": wanted["rounds"]} if "rounds" in wanted else {}
        more["known"] = {int(T): us for T, us in wanted.get("known", {}).items()}
        more["waiting"] = lambda waits: os.write(write, _WAITS if waits else _GOES_ON)
        reply: dict[str, Any] = {"us": measure(plans, _weights(wanted["weights"]), target, job, **more)}
    except DopingError as error:
        reply = {"error": " ".join(str(error).split()), "kind": "refused"}
    except Exception as error:  # whatever a candidate runs into, the search goes on
        kind = "device" if wanted["job"]["device"] else "error"
        reply = {"error": f"{type(error).__name__}: {str(error).strip()[-300:]}", "kind": kind}
    try:
        os.write(write, json.dumps(reply).encode())
    finally:
        os._exit(0)


def _die_with_parent() -> None:
    """Ask the system for SIGKILL when the parent ends (Linux; elsewhere the pipe's end has to do)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH, signal.SIGKILL)


if __name__ == "__main__":
    main()
