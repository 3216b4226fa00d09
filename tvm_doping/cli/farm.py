"""`tvm-doping farm`: the tracker and the servers of machines to tune on, TVM's own, on loopback unless told otherwise."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Annotated

import typer

farm = typer.Typer(
    name="farm",
    help="Lend this machine, or others, to tuning jobs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Host = Annotated[
    str,
    typer.Option(
        metavar="ADDRESS",
        help="Address to listen on. Whoever reaches an address that is not loopback can run any code on this machine.",
    ),
]
_PORTS = 100  # from the first on, to choose from
# What TVM's server writes when the process of a session crashed: it then listens no more, and does not end either.
_CRASHED = "exited unsuccessfully"
_PAUSE = 2.0  # seconds before a server that ended is started again


@farm.command()
def tracker(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, metavar="P", help="First port to try.")] = 9190,
) -> None:
    """Keep the list of the servers, and lend them to jobs.

    Example: tvm-doping farm tracker --port 9190
    """
    _warn(host)
    raise typer.Exit(_run(["rpc_tracker", "--host", host, *_ports(port)]))


@farm.command()
def server(
    tracker: Annotated[str, typer.Option(metavar="HOST:PORT", help="Tracker to register with.")],
    key: Annotated[
        str, typer.Option(metavar="K", help="What jobs ask for: one key for machines that are alike.")
    ],
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, metavar="P", help="First port to try.")] = 9090,
) -> None:
    """Measure candidates on this machine for the jobs that ask the tracker; started again where a candidate crashes it.

    Example: tvm-doping farm server --tracker 127.0.0.1:9190 --key my-machine
    """
    _warn(host)
    while True:
        _run(["rpc_server", "--host", host, *_ports(port), "--tracker", tracker, "--key", key])
        time.sleep(_PAUSE)


def _run(command: list[str]) -> int:
    """The exit code of a module of tvm.exec, -1 where it no longer serves; Ctrl-C and SIGTERM end it and this."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"tvm.exec.{command[0]}", *command[1:]],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # its own processes end with it, by their group
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    assert process.stderr is not None
    try:
        for line in process.stderr:
            sys.stderr.write(line)
            if _CRASHED in line:
                return -1
        return process.wait()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ports(first: int) -> list[str]:
    # without an end TVM's tracker stops where the port is taken
    return ["--port", str(first), "--port-end", str(first + _PORTS)]


def _warn(host: str) -> None:
    if host not in ("127.0.0.1", "::1", "localhost"):
        typer.echo(
            f"warning: whoever reaches {host} can run any code on this machine: open it to a trusted network alone",
            err=True,
        )
