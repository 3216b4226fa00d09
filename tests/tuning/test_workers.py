"""Workers: what is measured, and what becomes of candidates that fail, crash or hang, and of workers that are killed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.tuning.making import tasks
from tvm_doping import targets
from tvm_doping.tuning import worker
from tvm_doping.tuning.measure import Job
from tvm_doping.tuning.workers import Workers

pytestmark = pytest.mark.slow
TARGET = targets.resolve("auto")
TASK = next(task for task in tasks() if task.operation == "lstm")


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers(1) as found:
        yield found


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    worker.save_weights(tmp_path / "w.npz", TASK.weights)
    return tmp_path / "w.npz"


def request(weights: Path, timeout: float = 120.0, **job: Any) -> dict[str, Any]:
    settings = {"steps": (1, 5), "batch": 1, "threads": 1, **job}
    return worker.request([TASK.plan] * 2, "lstm", weights, TARGET, Job(**settings), timeout, 3)


def only(workers: Workers, wanted: dict[str, Any]) -> dict[str, Any]:
    ((name, reply),) = workers.run({"it": wanted})
    assert name == "it"
    return reply


def test_a_candidate_is_timed_beside_another(workers: Workers, weights: Path, tmp_path: Path) -> None:
    reply = only(workers, request(weights, kept=str(tmp_path)))
    assert [set(samples) for samples in reply["us"]] == [{"1", "5"}] * 2
    assert all(us > 0 for samples in reply["us"] for each in samples.values() for us in each)
    assert all(len(each) == 3 for samples in reply["us"] for each in samples.values())
    assert len(list(tmp_path.glob("*.so"))) == 1  # kept for the next measurement


def test_what_fails_is_told_and_the_worker_goes_on(workers: Workers, weights: Path, tmp_path: Path) -> None:
    assert "none.npz" in only(workers, request(tmp_path / "none.npz"))["error"]
    broken = request(weights)
    broken["plans"][1] = (
        broken["plans"][1].replace('"csr"', '"cst"').replace('"sell16"', '"cst"').replace('"dense"', '"cst"')
    )
    assert only(workers, broken)["kind"] in ("refused", "error")
    slow = only(workers, request(weights, timeout=0.05))
    assert slow["kind"] == "time-out" and "0.05 s" in slow["error"]
    (tmp_path / "kept").mkdir()
    before = set(Path(tempfile.gettempdir()).glob("tvm-doping-tune-*"))
    # a call of so many steps takes longer, on any machine; the library is built before
    slow = only(workers, request(weights, timeout=2.0, steps=(10**6,), kept=str(tmp_path / "kept")))
    assert slow["kind"] == "time-out" and list((tmp_path / "kept").iterdir())
    assert set(Path(tempfile.gettempdir()).glob("tvm-doping-tune-*")) <= before
    assert "us" in only(workers, request(weights))


def _disturbed(
    workers: Workers, weights: Path, tmp_path: Path, kill: Any, timeout: float = 120.0
) -> dict[str, Any]:
    """The reply of a candidate that is not to be timed before `kill(worker, child)` was called."""
    lock = tmp_path / "lock"
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def later() -> None:
            end = time.monotonic() + 120
            while time.monotonic() < end:
                for each in workers.workers:
                    children = psutil.Process(each.process.pid).children()
                    if children and each.busy:
                        kill(each.process.pid, children[0].pid)
                        time.sleep(0.2)
                        fcntl.flock(held, fcntl.LOCK_UN)
                        return
                time.sleep(0.05)

        killer = threading.Thread(target=later)
        killer.start()
        reply = only(workers, request(weights, timeout, locks=(str(lock),)))
        killer.join()
    return reply


def test_a_crash_is_recorded(workers: Workers, weights: Path, tmp_path: Path) -> None:
    reply = _disturbed(workers, weights, tmp_path, lambda _, child: os.kill(child, signal.SIGSEGV))
    assert reply["kind"] == "crash" and "SIGSEGV" in reply["error"] and reply["tries"] == 1
    assert "us" in only(workers, request(weights))


def test_a_candidate_that_hangs_is_recorded_and_gone(workers: Workers, weights: Path, tmp_path: Path) -> None:
    stopped: list[int] = []

    def hang(_: int, child: int) -> None:
        stopped.append(child)
        os.kill(child, signal.SIGSTOP)

    reply = _disturbed(workers, weights, tmp_path, hang, timeout=5.0)
    assert reply["kind"] == "time-out" and reply["tries"] == 1 and gone(stopped)
    assert "us" in only(workers, request(weights))


def test_waiting_for_other_jobs_is_not_counted(workers: Workers, weights: Path, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        release = threading.Timer(8.0, lambda: fcntl.flock(held, fcntl.LOCK_UN))
        replies = [only(workers, request(weights, kept=str(tmp_path)))]  # how long it takes without waiting
        release.start()
        replies.append(only(workers, request(weights, timeout=7.9, kept=str(tmp_path), locks=(str(lock),))))
        release.join()
    assert all("us" in reply for reply in replies) and replies[1]["seconds"] >= 7.9


def test_a_worker_that_is_killed_is_replaced_and_its_candidate_tried_again(
    workers: Workers, weights: Path, tmp_path: Path
) -> None:
    left: list[int] = []

    def kill(parent: int, child: int) -> None:
        left.append(child)
        os.kill(parent, signal.SIGKILL)

    reply = _disturbed(workers, weights, tmp_path, kill)
    assert "us" in reply and reply["tries"] == 2
    assert gone(left)


ORPHANS = """
import sys, json, signal
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has what it runs in the background ignore
from tvm_doping.tuning.workers import Workers
wanted = json.loads(sys.stdin.readline())
with Workers(2) as workers:
    names = {1: wanted, 2: wanted}
    for _ in workers.run(names): pass
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_of_a_job_that_is_killed(how: signal.Signals, weights: Path, tmp_path: Path) -> None:
    import json

    lock = tmp_path / "lock"
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        job = subprocess.Popen(
            [sys.executable, "-c", ORPHANS], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert job.stdin is not None
        job.stdin.write(json.dumps(request(weights, locks=(str(lock),))) + "\n")
        job.stdin.flush()
        end = time.monotonic() + 120
        left: list[int] = []
        while len(left) < 4 and time.monotonic() < end:  # two workers and a child of each
            left = [child.pid for child in psutil.Process(job.pid).children(recursive=True)]
            time.sleep(0.1)
        assert len(left) >= 4
        job.send_signal(how)
        job.wait(30)
        job.stdin.close()
        assert gone(left)


def gone(pids: list[int]) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.1)
    return False
