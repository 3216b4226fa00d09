"""The machine a benchmark ran on, and the cores it was held to."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tvm_doping.errors import BenchError

_PACKAGES = ("tvm-doping", "apache-tvm", "torch", "numpy", "scipy", "onnx", "onnxruntime", "openvino")


def describe() -> dict[str, Any]:
    """CPU, caches, memory, system and package versions: what a reader needs to judge a time."""
    cpu = _cpuinfo()
    flags = set(cpu.get("flags", cpu.get("Features", "")).split())
    load = os.getloadavg()
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "family": "/".join(cpu[key] for key in ("vendor_id", "cpu family", "model") if key in cpu),
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 1,
        "caches": _caches(),
        "vector_features": sorted(
            flags & {"avx", "avx2", "fma", "avx512f", "avx512vbmi", "avx512_vnni", "asimd", "sve"}
        ),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES if _version(name)},
        "load_before": [round(value, 2) for value in load],
    }


@contextmanager
def pinned(threads: int) -> Iterator[list[int]]:
    """Hold this process to `threads` cores while the block runs, so that no engine can use more; yields them.

    Raises BenchError where there are fewer.
    """
    if not hasattr(os, "sched_setaffinity"):  # not Linux: every engine is still told its number of threads
        yield []
        return
    before = os.sched_getaffinity(0)
    if not 1 <= threads <= len(before):
        raise BenchError(
            "threads",
            f"1 to {len(before)}, the cores this process may use",
            str(threads),
            "Ask for fewer threads.",
        )
    cores = sorted(before)[-threads:]  # the last ones: interrupts gather on the first
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, before)


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    fields: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return fields
    for line in text.split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    return fields


def _caches() -> dict[str, str]:
    """{"L1d": "48K", ...} of the first core."""
    found: dict[str, str] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = size
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
