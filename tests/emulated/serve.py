"""What an emulated device runs: TVM's RPC server, registered with a tracker.

    python -m tests.emulated.serve HOST:PORT KEY [TARGET]     from outside: starts the emulator, with a core of the target
    python3 serve.py HOST:PORT KEY                            inside it

TVM's own module, tvm.exec.rpc_server, starts itself again as a new process, which no system does for a program of another machine;
so the part of it that serves runs here, in this process. On a real device `tvm-doping farm server` does.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from pathlib import Path


def main(tracker: str, key: str, target: str = "cortex-a72") -> None:
    if platform.machine() != "aarch64":
        from tests.emulated.emulator import command

        with tempfile.TemporaryDirectory(prefix="tvm-doping-") as folder:
            subprocess.run([*command(target, Path(folder)), __file__, tracker, key], check=True)
        return
    from tvm.rpc.server import PopenRPCServerState

    host, port = tracker.rsplit(":", 1)
    state = PopenRPCServerState("127.0.0.1", 19090, 19190, tracker_addr=(host, int(port)), key=key)
    state.thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
