"""An Arm machine in software: qemu-aarch64 with the core of a target, over the root that `make arm-root` made."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.targets.test_arm import CHIPS, cpuinfo

REPOSITORY = Path(__file__).parents[2]
ROOT = REPOSITORY / "build" / "arm-root"
INSIDE = Path(__file__).with_name("inside.py")
LINKER = "aarch64-linux-gnu-g++"

# What qemu calls the core of a target; of a Neoverse V1 it has the instructions, with its 256 bits of SVE.
CORES = {
    "cortex-a53": "cortex-a53",
    "cortex-a72": "cortex-a72",
    "cortex-a76": "cortex-a76",
    "neoverse-n1": "neoverse-n1",
    "neoverse-v1": "max,sve256=on",
}
_CHIP = {
    name: cores for _, cores, name in reversed(CHIPS)
}  # of several that have a core, the one that is named first


def missing() -> str:
    """What the emulation lacks, in words; "" if nothing."""
    needs = [name for name in ("qemu-aarch64-static", LINKER) if shutil.which(name) is None]
    if not (ROOT / ".complete").exists():
        needs.append(f"the arm64 root in {ROOT.relative_to(REPOSITORY)}")
    return f"no {' and no '.join(needs)}: `make test-arm` sets up all of it" if needs else ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "set up")


def command(target: str, folder: Path, core: str = "") -> list[str]:
    """The command line of an emulated Python, whose /proc/cpuinfo is that of a chip with the target's core."""
    prefix = folder / f"machine-{target}"
    if not prefix.exists():
        (prefix / "proc").mkdir(parents=True)
        (prefix / "lib").symlink_to(ROOT / "lib")
        Path(cpuinfo(prefix / "proc", _CHIP[target]))
    version = (ROOT / ".complete").read_text().strip()
    site = ROOT / "site"
    settings = {
        "PYTHONHOME": str(ROOT / "usr"),
        "PYTHONPATH": f"{site}:{REPOSITORY}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LD_LIBRARY_PATH": f"{site}/tvm_ffi/lib:{site}/tvm/lib:{ROOT}/usr/lib/aarch64-linux-gnu",
        "OPENBLAS_NUM_THREADS": "1",
        "TVM_USE_RUNTIME_LIB": "1",
        "TVM_NUM_THREADS": "1",
    }
    given = [part for key, value in settings.items() for part in ("-E", f"{key}={value}")]
    python = ROOT / "usr" / "bin" / f"python{version}"
    return ["qemu-aarch64-static", "-cpu", core or CORES[target], "-L", str(prefix), *given, str(python)]


class Emulator:
    """Collects jobs, then runs them all in one emulated process: starting one takes seconds."""

    def __init__(self, target: str, folder: Path, core: str = "") -> None:
        self.target, self.folder, self.core = target, folder, core
        self.jobs: dict[str, dict[str, Any]] = {}
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, name: str, arrays: list[np.ndarray], **job: Any) -> None:
        """A job of inside.JOBS."""
        self.jobs[name] = {**job, "arrays": len(arrays)}
        self.arrays |= {f"{name}/{i}": array for i, array in enumerate(arrays)}

    def run(self, timeout: float = 400.0) -> Mapping[str, np.ndarray]:
        """The results, "JOB/KEY" -> array, and "auto": the target that was detected. AssertionError with the job that crashed."""
        (self.folder / "jobs.json").write_text(json.dumps(self.jobs))
        np.savez(self.folder / "arrays.npz", **self.arrays)  # type: ignore[arg-type]
        done = subprocess.run(
            [*command(self.target, self.folder, self.core), str(INSIDE), str(self.folder)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        last = done.stdout.strip().rpartition("\n")[2]
        assert done.returncode == 0, (
            f"exit {done.returncode} in {last!r} on {self.target}: {done.stderr[-2000:]}"
        )
        with np.load(self.folder / "results.npz") as file:
            return dict(file)
