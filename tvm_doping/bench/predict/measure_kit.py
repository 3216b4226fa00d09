"""Times the programs of this folder, one after the other on one core, and writes results.json. Needs Python 3.7 and nothing else.

python3 run.py [--seconds 0.5] [--out results.json] [--prefix "qemu-aarch64-static"]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
from pathlib import Path
from typing import Any

_ROUNDS = 5
_HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="for each program and round")
    parser.add_argument("--out", type=Path, default=_HERE / "results.json")
    parser.add_argument("--prefix", default="", help="a command that runs the programs")
    args = parser.parse_args()
    kit = json.loads((_HERE / "kit.json").read_text())
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    before = machine()
    samples: dict[str, list[float]] = {cell["name"]: [] for cell in kit["cells"]}
    for round_ in range(_ROUNDS):
        print(f"round {round_ + 1} of {_ROUNDS}", flush=True)
        for name, some in samples.items():
            some.append(once(name, args.seconds, shlex.split(args.prefix)))
    cells = [finish(cell, samples[cell["name"]]) for cell in kit["cells"]]
    dense = {cell["T"]: cell["us"] for cell in cells if cell["name"].endswith("dense")}
    print(f"{'':34}{'measured us':>12}{'predicted':>12}{'ratio':>8}{'dense / this':>14}")
    for cell in cells:
        ratio = f"{cell['ratio']:.2f}" if "ratio" in cell else f"{cell['gbs']:.1f} GB/s"
        over = f"{dense[cell['T']] / cell['us']:.1f}" if cell["T"] in dense and "ratio" in cell else ""
        print(f"{cell['name']:34}{cell['us']:12.1f}{cell.get('predicted_us', 0):12.1f}{ratio:>12}{over:>10}")
    results = {
        "format_version": 1,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),  # noqa: UP017
        "predicted_for": kit["device"],
        "machine": before,
        "machine_after": machine(),
        "prefix": args.prefix,
        "cells": cells,
    }
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"Please send back {args.out}")


def once(name: str, seconds: float, prefix: list[str]) -> float:
    """The median microseconds of a round of a program."""
    folder = _HERE / "cells" / name
    (folder / "plain").chmod(0o755)
    command = [*prefix, str(folder / "plain"), str(folder / "data.bin"), str(seconds)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split()[0])


def finish(cell: dict[str, Any], samples: list[float]) -> dict[str, Any]:
    us = statistics.median(samples)
    more = {"us": us, "samples_us": samples, "gbs": cell["bytes"] / us / 1e3}
    if "predicted_us" in cell:
        more["ratio"] = cell["predicted_us"] / us
    return {**cell, **more}


def machine() -> dict[str, Any]:
    """What a reader needs to judge the times: board, cores, clocks, temperatures, load."""

    def texts(pattern: str) -> list[str]:
        found = []
        for path in sorted(Path("/").glob(pattern)):
            try:
                found.append(path.read_text(errors="replace").strip("\0\n "))
            except OSError:
                continue
        return found

    cpuinfo = "".join(texts("proc/cpuinfo"))
    return {
        "board": (texts("proc/device-tree/model") or [platform.machine()])[0],
        "system": platform.platform(),
        "cpuinfo": cpuinfo.split("\n\n")[0],
        "cores": os.cpu_count(),
        "governor": texts("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "khz": texts("sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq"),
        "most_khz": texts("sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq"),
        "millidegrees": texts("sys/class/thermal/thermal_zone*/temp"),
        "load": os.getloadavg(),
    }


if __name__ == "__main__":
    main()
