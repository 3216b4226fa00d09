"""A program of kernels alone: compiled for the target, linked with a C runner and no library of TVM's, for a trace or a clock."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvm_doping._tvm import tvm
from tvm_doping.bench.predict.marks import MARK, Phase, marked
from tvm_doping.cross import compiler
from tvm_doping.errors import BenchError
from tvm_doping.kernels.lowering import TIR_PIPELINE
from tvm_doping.targets import Target

_RUNNER = Path(__file__).with_name("runner.c")
_CODES = {"i": 0, "u": 1, "f": 2}


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A function and its arguments.

    function   a PrimFunc, or the path of a C file that defines __tvm_ffi_<name>, with one phase that it marks itself.
    arguments  in order, outputs included; weights: the names of those that a call reads as they come, once a step or call.
    """

    name: str
    function: Any
    arguments: Mapping[str, np.ndarray]
    weights: tuple[str, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(self.arguments[name].nbytes for name in self.weights)


@dataclass(frozen=True, kw_only=True)
class Program:
    """An executable, the data it reads, and what its marks mean."""

    path: Path
    data: Path
    phases: tuple[Phase, ...]
    architecture: str


def build(kernels: Sequence[Kernel], target: Target, folder: Path, *, mark: bool) -> Program:
    """Compile and link; the kernels run in order, once a round. Raises BenchError or TargetError without the C compiler."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("marked" if mark else "plain")
    phases: list[Phase] = []
    functions: dict[str, Any] = {}
    objects: list[str] = []
    tuned = f"-m{'arch' if target.arch == 'x86_64' else 'cpu'}={target.mcpu}"
    for kernel in kernels:
        function = kernel.function
        if isinstance(function, Path):
            objects.append(f"{path}.{kernel.name}.o")
            define = [f"-DMARK={MARK}{len(phases)}"] if mark else []
            _compile(target, "-O3", tuned, *define, "-c", str(function), "-o", objects[-1])
            phases.append(Phase(kernel=kernel.name, reads=kernel.weights))
            continue
        if mark:
            function, found = marked(function, kernel.name, list(kernel.arguments), len(phases))
            phases += found
        functions[kernel.name] = function
    (folder / "tables.h").write_text(_tables(kernels, len(phases)))
    data = folder / "data.bin"
    if not data.exists():
        with data.open("wb") as file:
            for kernel in kernels:
                for array in kernel.arguments.values():
                    file.write(np.ascontiguousarray(array).tobytes())
    if functions:
        module = tvm.IRModule(functions)
        library = tvm.tirx.build(module, target=target.tvm(), pipeline=TIR_PIPELINE)
        objects.append(f"{path}.o")
        library.write_to_file(objects[-1], "o")
    _compile(
        target,
        "-O2",
        "-static",
        "-no-pie",
        f"-I{folder}",
        "-o",
        str(path),
        str(_RUNNER),
        *objects,
        "-lm",
    )
    return Program(path=path, data=data, phases=tuple(phases), architecture=target.arch)


def run(program: Program, seconds: float, *, prefix: Sequence[str] = ()) -> tuple[float, float]:
    """(median, least) microseconds that a round takes on this machine, measured for so long; prefix: a command to run it by."""
    command = [*prefix, str(program.path), str(program.data), f"{seconds}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    median, least, _ = done.stdout.split()
    return float(median), float(least)


def _compile(target: Target, *arguments: str) -> None:
    name = compiler(target, "c") or "gcc"
    if shutil.which(name) is None:
        raise BenchError(
            f"a program for {target.arch}",
            f"the C compiler {name}",
            "none on the PATH",
            "Install it: sudo apt-get install gcc",
        )
    done = subprocess.run([name, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError("a program to trace", "to compile and link", done.stderr[-600:], "Report this.")


def _tables(kernels: Sequence[Kernel], marks: int) -> str:
    """C: functions, their numbers of arguments, and the shapes of all tensors."""
    arrays = [array for kernel in kernels for array in kernel.arguments.values()]
    lines = [f"enum {{ KERNELS = {len(kernels)}, TENSORS = {len(arrays)} }};"]
    lines += [f"extern Function __tvm_ffi_{kernel.name};" for kernel in kernels]
    lines += [f"int {MARK}{i}(void);\nint {MARK}{i}(void) {{ return {i}; }}" for i in range(marks)]
    lines += [
        "static Function *const functions[] = {" + ", ".join(f"__tvm_ffi_{k.name}" for k in kernels) + "};",
        "static const int counts[] = {" + ", ".join(str(len(k.arguments)) for k in kernels) + "};",
        "static const size_t sizes[] = {" + ", ".join(str(a.nbytes) for a in arrays) + "};",
    ]
    lines += [
        f"static int64_t shape{i}[] = {{{', '.join(map(str, a.shape))}}};" for i, a in enumerate(arrays)
    ]
    rows = [
        f"  {{NULL, 1, 0, {a.ndim}, {_CODES[a.dtype.kind]}, {8 * a.dtype.itemsize}, 1, shape{i}, NULL, 0}},"
        for i, a in enumerate(arrays)
    ]
    return "\n".join([*lines, "static Tensor tensors[] = {", *rows, "};", ""])
