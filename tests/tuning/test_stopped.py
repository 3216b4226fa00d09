"""A tuning job that is stopped: nothing it has measured is lost, none of its processes is left, and it goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.tuning.test_workers import gone

pytestmark = pytest.mark.slow

JOB = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has what it runs in the background ignore
from tests.tuning.making import small
from tvm_doping.tuning import tune
folder, trials, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume"
tune(small(), trials=trials, jobs=1, only="rnn", resume=resume, log=folder / "log", records=folder / "records",
     lock=folder / "lock")
"""


def start(folder: Path, trials: int, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", JOB, str(folder), str(trials), how]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def whole_lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "log" / "log.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_job_leaves_nothing_running_and_goes_on(how: signal.Signals, tmp_path: Path) -> None:
    job = start(tmp_path, 10**6, "begin")
    try:
        while len(whole_lines(tmp_path)) < 3:
            assert job.poll() is None
            time.sleep(0.1)
        before = whole_lines(tmp_path)
        left = [child.pid for child in psutil.Process(job.pid).children(recursive=True)]
        job.send_signal(how)
        job.communicate()
    finally:
        job.kill()
    assert left and job.returncode != 0 and gone(left)
    stopped = whole_lines(tmp_path)
    assert stopped[: len(before)] == before

    again = start(tmp_path, len(stopped) + 2, "resume")
    _, errors = again.communicate()
    assert again.returncode == 0, errors
    lines = whole_lines(tmp_path)
    measured = [line for line in lines if "choice" in line]
    assert measured[: len(stopped)] == stopped and len(measured) == len(stopped) + 2
    assert "best" in lines[-1] and list((tmp_path / "records").glob("*/lstm.json"))
