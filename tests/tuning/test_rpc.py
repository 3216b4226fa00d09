"""Devices behind TVM's RPC tracker, on loopback: what is measured there, and one that disappears meanwhile."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from tvm import rpc

from tests.tuning.farm import KEY, Farm
from tests.tuning.test_workers import TARGET, TASK
from tvm_doping.tuning import tune, worker
from tvm_doping.tuning.measure import Job
from tvm_doping.tuning.workers import Workers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    found = Farm(tmp_path_factory.mktemp("farm"))
    yield found
    found.close()


def request(farm: Farm, folder: Path, rounds: int) -> dict[str, Any]:
    worker.save_weights(folder / "w.npz", TASK.weights)
    job = Job(steps=(1, 5), batch=1, threads=1, device=f"{farm.address} {KEY}")
    return worker.request([TASK.plan] * 2, "lstm", folder / "w.npz", TARGET, job, 120, rounds)


def test_a_job_on_two_devices(farm: Farm, tmp_path: Path) -> None:
    from tests.tuning.making import small

    (path,) = tune(
        small(),
        TARGET.name,
        trials=4,
        jobs=2,
        log=tmp_path / "log",
        records=tmp_path / "records",
        only="rnn",
        tracker=farm.address,
        key=KEY,
        cpu="a box",
    )
    assert path.parent.name == f"{TARGET.name}-a-box"
    assert '"error"' not in (tmp_path / "log" / "log.jsonl").read_text()


def test_a_server_that_a_candidate_crashed_serves_again(farm: Farm, tmp_path: Path) -> None:
    crashing = tmp_path / "crash.c"
    crashing.write_text("__attribute__((constructor)) static void crash(void) { *(volatile int *)0 = 1; }")
    library = tmp_path / "crash.so"
    subprocess.run(["gcc", "-shared", "-fPIC", str(crashing), "-o", str(library)], check=True)
    session = rpc.connect_tracker("127.0.0.1", farm.port).request(KEY, session_timeout=30)
    session.upload(bytearray(library.read_bytes()), "crash.so")
    crash = threading.Thread(target=lambda: _tried(session), daemon=True)
    crash.start()
    farm.wait(2)
    with Workers(1) as workers:
        ((_, reply),) = workers.run({"it": request(farm, tmp_path, 2)})
    assert "us" in reply


def _tried(session: Any) -> None:
    with suppress(Exception):
        session.load_module("crash.so")


def test_a_device_that_disappears_is_retried_elsewhere(farm: Farm, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        """Once a server has a session, which is a process of its own, end that server."""
        end = time.monotonic() + 120
        usual = {s.pid: len(psutil.Process(s.pid).children(recursive=True)) for s in farm.servers}
        while time.monotonic() < end and not killed:
            for server in farm.servers:
                below = psutil.Process(server.pid).children(recursive=True)
                if len(below) > usual[server.pid]:
                    time.sleep(0.5)
                    for each in (psutil.Process(server.pid), *below):
                        each.kill()
                    killed.append(server.pid)
                    break
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    with Workers(1) as workers:
        ((_, reply),) = workers.run({"it": request(farm, tmp_path, 300)})
    killer.join()
    assert killed and "us" in reply and reply["tries"] == 2
