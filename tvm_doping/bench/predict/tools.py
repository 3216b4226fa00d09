"""The programs of LLVM that a prediction needs, newest version first: a core's model gets better from one to the next."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import lru_cache

from tvm_doping.bench.predict.devices import Device
from tvm_doping.errors import BenchError

_VERSIONS = range(30, 13, -1)


@lru_cache(maxsize=4)
def llvm(tool: str) -> str:
    """The command of "mca" or "objdump", as `llvm-mca-19`, from the newest LLVM that has both. Raises BenchError without any."""
    for suffix in (*(f"-{version}" for version in _VERSIONS), ""):
        if all(shutil.which(f"llvm-{name}{suffix}") for name in ("mca", "objdump")):
            return f"llvm-{tool}{suffix}"
    raise BenchError(
        "a prediction",
        "llvm-mca and llvm-objdump, LLVM 14 or later",
        "none on the PATH",
        "Install them: sudo apt-get install llvm",
    )


@lru_cache(maxsize=1)
def llvm_version() -> str:
    """As "19.1.7"."""
    text = subprocess.run([llvm("mca"), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\S+)", text)
    return found[1] if found else "unknown"


def check_version(device: Device) -> None:
    """BenchError where llvm-mca is older than the first version with the core's own model: it would take another's."""
    if int(llvm_version().split(".")[0]) < device.llvm:
        raise BenchError(
            f"a prediction for {device.name}",
            f"llvm-mca {device.llvm} or later, which knows the core",
            llvm_version(),
            "Install it: sudo apt-get install llvm-19",
        )
