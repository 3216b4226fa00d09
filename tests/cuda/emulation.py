"""CUDA without a GPU: TVM's own runtime over a driver of ours, which runs the kernels' CUDA C on the CPU.

What runs is what is deployed: the host code and the launches of the exported library, loaded by TVM's CUDA runtime. Only
`cuLaunchKernelEx` ends in C++ functions instead of a GPU's: the same CUDA C, compiled with a header that gives `threadIdx`,
`__shared__`, `__syncthreads`, shuffles and the barrier of a grid their meaning on fibers (emulator/include).
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pytest
import tvm

HERE = Path(__file__).parent / "emulator"
ORDERS = {
    "forward": 0,
    "backward": 1,
    "warp by warp": 2,
    "shuffled": 7,
}  # in which the threads of a block run


class Driver:
    """The emulated driver, loaded into this process in place of libcuda.so.1 and libcudart.so.13."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tvm-doping-cuda-"))
        source, versions = str(HERE / "driver.cpp"), self.folder / "versions"
        versions.write_text("libcudart.so.13 { global: *; };\n")
        runtime, driver = self.folder / "libcudart.so.13", self.folder / "libcuda.so.1"
        _compile(
            ["-o", str(runtime), "-Wl,-soname,libcudart.so.13", f"-Wl,--version-script={versions}", source]
        )
        (self.folder / "empty.cpp").write_text("")
        needs = ["-Wl,--no-as-needed", str(runtime), f"-Wl,-rpath,{self.folder}"]
        _compile(["-o", str(driver), "-Wl,-soname,libcuda.so.1", str(self.folder / "empty.cpp"), *needs])
        # read once for all kernels: a third of the time that one compiles
        header = self.folder / "emulated.h"
        header.write_text(f'#include "{HERE / "include" / "cuda.h"}"\n')
        _compile(["-x", "c++-header", "-o", f"{header}.gch", str(header)])
        self.library = ctypes.CDLL(str(runtime), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(driver), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"), ctypes.RTLD_GLOBAL)

    def image(self, source: str, image: bytes | None = None) -> bytes:
        """The image that stands for a source from now on: the one given, or any bytes."""
        image = image or b"emulated " + hashlib.sha256(source.encode()).hexdigest().encode()
        path = self.folder / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.so"
        if not path.exists():
            text = self.folder / "kernels.cpp"
            text.write_text(as_cpp(source))
            folders = ["-I", str(self.folder), "-I", str(HERE / "include")]
            _compile([*folders, "-o", str(path), str(text)])
        self.library.emulator_register(image, ctypes.c_size_t(min(len(image), 4096)), str(path).encode())
        return image

    def order(self, name: str) -> None:
        """Let the threads of blocks run in that order."""
        self.library.emulator_order(ORDERS[name])

    def late(self, how: Literal["at once", "late", "in turns"]) -> None:
        """When streams do their work: at once, or when something waits for it, the others' then left, or done in turns with it."""
        self.library.emulator_late({"at once": 0, "late": 1, "in turns": 2}[how])

    def log(self) -> list[str]:
        """The launches since the last call."""
        room = ctypes.create_string_buffer(1 << 20)
        self.library.emulator_log(room, ctypes.c_size_t(len(room)))
        return room.value.decode().split("\n")[:-1]

    def close(self) -> None:
        """Remove its files."""
        shutil.rmtree(self.folder, ignore_errors=True)


@lru_cache(maxsize=1)
def driver() -> Driver:
    """The one of this process; skips where a real one is loaded, or nothing compiles C++."""
    maps = Path("/proc/self/maps")
    if not maps.exists() or shutil.which("g++") is None:
        pytest.skip("the emulation of CUDA needs Linux and g++")
    if re.search(r"/lib(cuda|cudart)\.so\.\d", maps.read_text()):
        pytest.skip("a CUDA runtime is loaded into this process already")
    return Driver()


def as_cpp(source: str) -> str:
    """CUDA C as C++ for the host: shared memory from the block, and a function for each kernel that binds its arguments."""
    number = iter(range(10_000))
    source = re.sub(r'\basm(?: volatile)?\("([\w.]+) (?:[^":]|"\s*")*"\s*:([^;]*)\);', _as_call, source)
    source = re.sub(
        r"extern __shared__ __align__\(\d+\) (\w+) (\w+)\[\];", r"\1* \2 = (\1*)emulated::shared();", source
    )
    source = re.sub(
        r"(?<!extern )__shared__ (?:(?:__align__|alignas)\(\d+\) )?(\w+) (\w+)\[(\d+)\];",
        lambda m: f"{m[1]}* {m[2]} = ({m[1]}*)emulated::fixed({next(number)}, sizeof({m[1]}) * {m[3]});",
        source,
    )
    names = dict.fromkeys(re.findall(r'extern "C" __global__ void .*?\b(\w+)\((?=[^()]*\) \{)', source))
    binds = "\n".join(
        f'extern "C" void* bind_{name}(void** p) {{ return emulated::bind({name}, p); }}' for name in names
    )
    return f"#include <emulated.h>\n{source}\n{binds}\n{_RUN}"


def _as_call(found: re.Match[str]) -> str:
    """An instruction of PTX as a call of ptx.h, with the operands that its constraints name."""
    operands = re.findall(r'"[^"]*"\(((?:[^()]|\([^()]*\))*)\)', found[2])
    return f"ptx_{found[1].replace('.', '_')}({', '.join(operands)});"


_RUN = """
extern "C" std::string emulated_run(
    void* closure, const int* size, const int* threads, size_t shared, bool together, unsigned order) {
  auto& kernel = *(emulated::Closure*)closure;
  emulated::Index grid{size[0], size[1], size[2]}, block{threads[0], threads[1], threads[2]};
  int blocks = grid.x * grid.y * grid.z;
  for (int first = 0; first < blocks; first += together ? blocks : 1) {
    int last = together ? blocks : first + 1;
    std::string error = emulated::run_blocks(kernel, grid, block, shared, first, last, order);
    if (!error.empty()) return error;
  }
  return "";
}
"""


def _compile(arguments: list[str]) -> None:
    command = [
        "g++",
        "-std=c++17",
        "-O1",
        "-w",
        "-fno-strict-aliasing",
        "-ffp-contract=off",
        "-fPIC",
    ]
    if "c++-header" not in arguments:
        arguments = ["-shared", *arguments, "-ldl"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


def to_gpu(array: Any) -> Any:
    """A copy in the emulated GPU's memory."""
    return tvm.runtime.tensor(array, device=tvm.cuda(0))
