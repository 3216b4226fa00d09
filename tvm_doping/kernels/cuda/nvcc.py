"""nvcc: from CUDA C to a fat binary, and what ptxas says of its kernels. Neither needs a GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tvm_doping.errors import TargetError

# fp32 as it is written: no approximate division, denormals kept. Sums still contract into FMAs.
_FLAGS = ("-O3", "-std=c++17", "-Xptxas", "-v")


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a kernel takes, as ptxas counts: registers of a thread, and bytes of it that did not fit them (stored and loaded); bytes
    of a block's shared memory, beside those that its launch asks for.
    """

    registers: int
    spilled: int
    stack: int
    shared: int


def find_nvcc() -> str:
    """The path of nvcc: that of the package nvidia-cuda-nvcc (`pip install tvm-doping[cuda]`), CUDA_HOME's, or PATH's.

    Raises TargetError where there is none.
    """
    spec = importlib.util.find_spec("nvidia")
    packages = spec.submodule_search_locations if spec and spec.submodule_search_locations else ()
    folders = [Path(place) / "cu13" for place in packages]
    if os.environ.get("CUDA_HOME"):
        folders.append(Path(os.environ["CUDA_HOME"]))
    for folder in folders:
        if os.access(folder / "bin" / "nvcc", os.X_OK):
            return str(folder / "bin" / "nvcc")
    found = shutil.which("nvcc")
    if found is None:
        raise TargetError(
            "the compiler of a CUDA target",
            "nvcc 12 or later; a GPU is not needed",
            "none in Python's packages, CUDA_HOME or PATH",
            "pip install 'tvm-doping[cuda]', or install NVIDIA's CUDA toolkit.",
        )
    return found


def fatbin(source: str, arch: str) -> bytes:
    """The fat binary of CUDA C for an architecture ("sm_90"): machine code for it, and PTX that drivers compile for later ones."""
    return compile_cuda(source, arch)[0]


def compile_cuda(source: str, arch: str) -> tuple[bytes, dict[str, Resources]]:
    """The fat binary, and each kernel's resources. Raises TargetError where nvcc does not know the architecture, or the C."""
    number = arch.removeprefix("sm_")
    codes = [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in ("sm", "compute")]
    with tempfile.TemporaryDirectory(prefix="tvm-doping-") as folder:
        text, out = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        text.write_text(source, encoding="utf-8")
        command = [find_nvcc(), "-fatbin", *_FLAGS, *codes, "-o", str(out), str(text)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TargetError(
                f"the CUDA C of a model, compiled for {arch}",
                "a C++ compiler and an nvcc that knows the architecture",
                _errors(done.stderr or done.stdout)[:600],
                "Use the versions that pyproject.toml names under [cuda].",
            )
        return out.read_bytes(), _resources(done.stderr + done.stdout)


def _errors(report: str) -> str:
    """The lines of nvcc's report that tell errors: warnings come before them."""
    lines = [line for line in report.splitlines() if re.search(r"\b(error|fatal|not found)\b", line)]
    return "\n".join(lines) or report.strip()


def _resources(report: str) -> dict[str, Resources]:
    """Of each kernel in ptxas's report."""
    found = {}
    for piece in report.split("Compiling entry function '")[1:]:
        name = piece.partition("'")[0]
        stack, stores, loads, registers = (
            int(match[1]) if (match := re.search(pattern, piece)) else -1
            for pattern in (
                r"(\d+) bytes stack",
                r"(\d+) bytes spill stores",
                r"(\d+) bytes spill loads",
                r"Used (\d+) registers",
            )
        )
        fixed = re.search(r"(\d+) bytes smem", piece)  # not told where there are none
        found[name] = Resources(
            registers=registers, spilled=stores + loads, stack=stack, shared=int(fixed[1]) if fixed else 0
        )
    return found
