"""A tracker and its servers on loopback, as docs/tuning.md starts them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from tvm import rpc

KEY = "box"


class Farm:
    """A tracker and so many servers of this machine."""

    def __init__(self, folder: Path, servers: int = 2) -> None:
        self.folder = folder
        self.tracker = self._start("tracker")
        self.port = self._port(self.tracker)
        at = ("--tracker", self.address, "--key", KEY)
        self.servers = [self._start("server", *at) for _ in range(servers)]
        self.wait(servers)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        for process in (*self.servers, self.tracker):
            if process.poll() is None:
                for each in (
                    *psutil.Process(process.pid).children(recursive=True),
                    psutil.Process(process.pid),
                ):
                    each.kill()
            process.wait()

    def _start(self, verb: str, *more: str) -> Any:
        return self.start([sys.executable, "-m", "tvm_doping", "farm", verb, *more], verb)

    def start(self, command: list[str], name: str) -> Any:
        """A process of the farm's, whose output goes to a file of its folder."""
        with open(self.folder / f"{name}-{time.monotonic_ns()}.log", "w") as log:
            return subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)

    def _port(self, process: Any) -> int:
        end = time.monotonic() + 400
        while time.monotonic() < end:
            for each in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
                for connection in each.net_connections("tcp"):
                    if connection.status == "LISTEN":
                        assert connection.laddr.ip == "127.0.0.1"
                        return int(connection.laddr.port)
            time.sleep(0.2)
        raise AssertionError("the tracker does not listen")

    def wait(self, count: int) -> None:
        """Until so many servers of the key are free."""
        end = time.monotonic() + 400
        while time.monotonic() < end:
            known = rpc.connect_tracker("127.0.0.1", self.port).summary()["queue_info"].get(KEY, {})
            if known.get("free", 0) >= count:
                return
            time.sleep(0.5)
        raise AssertionError("the servers do not register")
