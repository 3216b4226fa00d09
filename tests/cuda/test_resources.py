"""Every kernel compiled for every architecture, at the sizes of models: registers and shared memory within the budget."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tvm
from scipy import sparse as sp

from tests.cuda.conftest import built, plan_of
from tvm_doping import structures
from tvm_doping.errors import TargetError
from tvm_doping.kernels.cuda.image import images
from tvm_doping.kernels.cuda.lowering import cuda_pipeline
from tvm_doping.kernels.cuda.lstm import pack, prim_func
from tvm_doping.kernels.cuda.nvcc import compile_cuda, find_nvcc
from tvm_doping.kernels.plan import Grid
from tvm_doping.kernels.trees import found

SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}


def layer(hidden: int, density: float) -> tuple[Any, Any]:
    """An untrained layer with factors 20 x 130 (x) 130 x 10 and the like."""
    rng = np.random.default_rng(0)
    shapes = {650: ((20, 65), (130, 10)), 1500: ((60, 150), (100, 10))}[hidden]
    factors = [(rng.standard_normal(s) * 0.1).astype("float32") for s in shapes]
    S = sp.random_array((4 * hidden, hidden), density=density, dtype=np.float32, rng=rng)
    weight = structures.Doped(structures.Kronecker(*factors), sp.csr_array(S))
    return weight, weight


@pytest.mark.parametrize("values", ["fp32", "fp16"])
@pytest.mark.parametrize("hidden", [650, 1500])
@pytest.mark.parametrize("arch", SHARED)
def test_kernels_stay_within_their_budget(arch: str, hidden: int, values: str) -> None:
    try:
        find_nvcc()
    except TargetError as error:
        pytest.skip(str(error))
    multiprocessors = {"sm_80": 108, "sm_90": 132}[arch]
    each = -(-hidden // multiprocessors)
    grid = Grid(
        parts=-(-hidden // each), threads=512, tile_from=8, shared=SHARED[arch], registers=65_536 // 512
    )
    w = layer(hidden, 0.04)
    plan = plan_of(w, values=values, grid=grid)
    made: dict[str, Any] = {}

    def compile_image(source: str) -> bytes:
        image, made["resources"] = compile_cuda(source, arch)
        made["source"] = source
        return image

    function = prim_func(plan, pack(plan, *w, np.zeros(4 * hidden, "float32")), "f")
    with images(compile_image):
        module = built(function, arch)
        if not made:  # TVM's CUDA runtime is not loaded: it asks for no image yet
            compile_image(module.imports[0].inspect_source("cuda"))
    resources = made["resources"]
    assert len(resources) == 8
    for name, taken in resources.items():
        assert (taken.spilled, taken.stack) == (0, 0), name
        assert 0 < taken.registers <= grid.registers, (name, taken)
    # No kernel has shared memory but what its launch asks for; the recurrence of one stream keeps its weights there.
    assert not re.search(r"(?<!extern )__shared__", made["source"])
    asked = shared_memory(function)
    assert len(asked) == 8 and max(asked) <= SHARED[arch]
    assert asked[3] > plan.recurrent.nnz * (6 if values == "fp32" else 4) / grid.parts


def shared_memory(function: Any) -> list[int]:
    """The bytes that each launch asks for."""
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_90"}, host="llvm")
    lowered = cuda_pipeline(tvm.tirx.transform.BindTarget(target)(tvm.IRModule({"f": function})))
    calls = found(lowered["f"].body, tvm.ir.Call)
    return [int(c.args[-1]) for c in calls if getattr(c.op, "name", "") == "tirx.call_ffi_kernel"]
