"""Every kernel compiled for every architecture, at the sizes of models: registers and shared memory within the budget."""

from __future__ import annotations

import re
from collections.abc import Callable
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
from tvm_doping.kernels.trees import found
from tvm_doping.schedules.grids import grid_of
from tvm_doping.sparsity.patterns import blocks

SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}


def layer(hidden: int, density: float) -> tuple[Any, Any]:
    """An untrained layer with factors 20 x 130 (x) 130 x 10 and the like."""
    rng = np.random.default_rng(0)
    shapes = {650: ((20, 65), (130, 10)), 1500: ((60, 150), (100, 10))}[hidden]
    factors = [(rng.standard_normal(s) * 0.1).astype("float32") for s in shapes]
    S = sp.random_array((4 * hidden, hidden), density=density, dtype=np.float32, rng=rng)
    weight = structures.Doped(structures.Kronecker(*factors), sp.csr_array(S))
    return weight, weight


def low_rank_layer(hidden: int, density: float) -> tuple[Any, Any]:
    """A hybrid and a low rank of about 20x."""
    rng = np.random.default_rng(0)
    k, r = {650: (100, 26), 1500: (240, 60)}[hidden]

    def array(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.1).astype("float32")

    S = sp.csr_array(sp.random_array((4 * hidden, hidden), density=density, dtype=np.float32, rng=rng))
    hybrid = structures.Hybrid(array(k, hidden), array(4 * hidden - k, r), array(r, hidden))
    low_rank = structures.LowRank(array(4 * hidden, r), array(r, hidden))
    return structures.Doped(hybrid, S), structures.Doped(low_rank, S)


def block_layer(hidden: int, density: float) -> tuple[Any, Any]:
    """The low rank and the Kronecker product, with an S of 16 x 1 blocks."""
    mask = blocks(np.random.default_rng(0).random((4 * hidden, hidden)), density)
    S = sp.csr_array(mask.astype("float32"))
    return (
        structures.Doped(low_rank_layer(hidden, density)[1].base, S),
        structures.Doped(layer(hidden, density)[1].base, S),
    )


# The layer, its values, the format of S; how many kernels it has: of a step, of few streams, of tiles; which one is the recurrence.
CASES: dict[str, tuple[Callable[[int, float], tuple[Any, Any]], str, str, int, int]] = {
    "fp32": (layer, "fp32", "sell32", 9, 3),
    "fp16": (layer, "fp16", "sell32", 9, 3),
    "low rank": (low_rank_layer, "fp32", "sell32", 14, 5),
    "tensor cores": (block_layer, "bf16", "mma16", 13, 5),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("arch", "hidden", "threads"),
    [*((arch, H, 512) for arch in SHARED for H in (650, 1500)), ("sm_90", 1500, 256), ("sm_90", 1500, 768)],
)
def test_kernels_stay_within_their_budget(arch: str, hidden: int, threads: int, case: str) -> None:
    of, values, format, count, recurrence = CASES[case]
    try:
        find_nvcc()
    except TargetError as error:
        pytest.skip(str(error))
    multiprocessors = {"sm_80": 108, "sm_90": 132}[arch]
    each = -(-hidden // multiprocessors)
    grid = grid_of(-(-hidden // each), threads, 8, SHARED[arch])
    w = of(hidden, 0.04)
    plan = plan_of(w, values=values, grid=grid, format=format)
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
    assert len(resources) == count
    for name, taken in resources.items():
        assert (taken.spilled, taken.stack) == (0, 0), name
        assert 0 < taken.registers <= grid.registers, (name, taken)
    # No kernel has shared memory but what its launch asks for; the recurrence of one stream keeps its weights there.
    assert not re.search(r"(?<!extern )__shared__", made["source"])
    asked = shared_memory(function)
    assert len(asked) == count and max(asked) <= SHARED[arch]
    bytes_each = {"fp32 sell32": 6, "fp16 sell32": 4, "bf16 mma16": 2}[f"{values} {format}"]
    assert asked[recurrence] > plan.recurrent.nnz * bytes_each / grid.parts
    if format == "mma16":
        assert "mma.sync.aligned.m16n8k16" in made["source"]


def test_an_error_of_nvcc_is_told_without_its_warnings() -> None:
    try:
        find_nvcc()
    except TargetError as error:
        pytest.skip(str(error))
    source = "__global__ void f(float* y) { float unused = 0x1.71547652b82fep+0f; y[0] = undeclared; }"
    with pytest.raises(TargetError, match="undeclared") as raised:
        compile_cuda(source, "sm_90")
    assert "warning" not in str(raised.value)


def shared_memory(function: Any) -> list[int]:
    """The bytes that each launch asks for."""
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_90"}, host="llvm")
    lowered = cuda_pipeline(tvm.tirx.transform.BindTarget(target)(tvm.IRModule({"f": function})))
    calls = found(lowered["f"].body, tvm.ir.Call)
    return [int(c.args[-1]) for c in calls if getattr(c.op, "name", "") == "tirx.call_ffi_kernel"]
