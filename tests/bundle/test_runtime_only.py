"""Running a bundle needs TVM's runtime and four packages: neither the compiler nor PyTorch is mapped into the process."""

from __future__ import annotations

import json
import subprocess
import sys

RUN = """
import json, sys
import numpy as np
import tvm_doping
session = tvm_doping.load({path!r}, verify=True)
session.run(np.zeros((3, 1, 8), np.float32))
session.step(np.zeros((1, 8), np.float32))
mapped = {{line.split()[-1].rsplit("/", 1)[-1] for line in open("/proc/self/maps") if "/" in line}}
third = {{name.partition(".")[0] for name in sys.modules}} - sys.stdlib_module_names
print(json.dumps([sorted(mapped), sorted(third)]))
"""
# What a device needs to have installed, and what these install themselves.
NEEDED = {"numpy", "pydantic", "safetensors", "tvm_ffi"}
THEIRS = {"annotated_types", "pydantic_core", "typing_extensions", "typing_inspection", "ml_dtypes"}


def test_only_the_runtime_is_mapped(saved):
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(path=str(saved))], capture_output=True, text=True, check=True
    )
    mapped, modules = json.loads(done.stdout)
    assert {"libtvm_runtime.so", "libtvm_ffi.so"} <= set(mapped)
    heavy = [name for name in mapped if any(word in name for word in ("compiler", "LLVM", "torch", "cuda"))]
    assert heavy == []
    own = {"tvm_doping", "__main__", "sitecustomize", "usercustomize", "cython_runtime"}
    found = {name for name in modules if not name.startswith("_")} - own
    assert found >= NEEDED
    assert {name for name in found if name in {"tvm", "torch", "scipy", "typer", "rich", "yaml"}} == set()
    assert found <= NEEDED | THEIRS
