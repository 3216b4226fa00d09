"""Every kernel compiled for every architecture, at the sizes of models: registers and shared memory within the budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from scipy import sparse as sp

from tests.cuda.conftest import built, plan_of
from tvm_doping import structures
from tvm_doping.errors import TargetError
from tvm_doping.kernels import linear
from tvm_doping.kernels.cuda.image import images
from tvm_doping.kernels.cuda.lowering import cuda_pipeline
from tvm_doping.kernels.cuda.lstm import pack, prim_func
from tvm_doping.kernels.cuda.nvcc import Resources, _resources, compile_cuda, find_nvcc
from tvm_doping.kernels.plan import Config, Grid, LinearPlan, Product
from tvm_doping.kernels.product import part_of
from tvm_doping.kernels.trees import found
from tvm_doping.schedules.grids import grid_of, options
from tvm_doping.sparsity.patterns import blocks
from tvm_doping.targets import TARGETS

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
    function = prim_func(plan, pack(plan, *w, np.zeros(4 * hidden, "float32")), "f")
    asked, source = within_budget(function, arch, grid, count)
    # the recurrence of one stream keeps its weights in shared memory
    bytes_each = {"fp32 sell32": 6, "fp16 sell32": 4, "bf16 mma16": 2}[f"{values} {format}"]
    assert asked[recurrence] > plan.recurrent.nnz * bytes_each / grid.parts
    if format == "mma16":
        assert "mma.sync.aligned.m16n8k16" in source


def within_budget(function: Any, arch: str, grid: Grid, count: int) -> tuple[list[int], str]:
    """Compile its `count` kernels and compare what ptxas says with the grid; returns the shared memory of their launches, and the
    source.
    """
    made: dict[str, Any] = {}

    def compile_image(source: str) -> bytes:
        image, made["resources"] = compile_cuda(source, arch)
        made["source"] = source
        return image

    with images(compile_image):
        module = built(function, arch)
        if not made:  # TVM's CUDA runtime is not loaded: it asks for no image yet
            compile_image(module.imports[0].inspect_source("cuda"))
    resources, asked = made["resources"], shared_memory(function)
    assert len(resources) == len(asked) == count
    for name, taken in resources.items():
        assert (taken.spilled, taken.stack) == (0, 0), name
        assert 0 < taken.registers <= grid.registers, (name, taken)
        # beside what its launch asks for
        assert taken.shared == 0, (name, taken)
    assert max(asked) <= grid.shared == SHARED[arch]
    return asked, made["source"]


@pytest.mark.parametrize("arch", SHARED)
@pytest.mark.parametrize(("base", "values", "count"), [("kronecker", "bf16", 3), ("low rank", "int8", 5)])
def test_kernels_of_linear_layers_too(arch: str, base: str, values: Any, count: int) -> None:
    """2,600 outputs of 650 inputs, in four rounds of blocks."""
    try:
        find_nvcc()
    except TargetError as error:
        pytest.skip(str(error))
    weight = {"kronecker": layer(650, 0.04)[0], "low rank": low_rank_layer(650, 0.04)[1]}[base]
    outputs, inputs = weight.shape
    option = next(options(outputs, 1, TARGETS[arch.replace("sm_", "cuda-sm")]))
    product = Product(part=part_of(weight), sparse="sell32", nnz=int(weight.S.nnz), values=values)
    config = Config(lanes=1, registers=0, grid=option.grid)
    plan = LinearPlan(inputs=inputs, outputs=outputs, product=product, config=config)
    arrays = linear.pack(plan, weight, np.zeros(outputs, "float32"))
    within_budget(linear.prim_func(plan, arrays, "f"), arch, option.grid, count)


def test_what_ptxas_says_is_read() -> None:
    """As nvcc 13.0 writes it, of a kernel that spills and one that does not."""
    report = (
        "ptxas info    : Compiling entry function 'first' for 'sm_90'\n"
        "ptxas info    : Function properties for first\n"
        "    64 bytes stack frame, 60 bytes spill stores, 56 bytes spill loads\n"
        "ptxas info    : Used 32 registers, used 1 barriers, 64 bytes cumulative stack size, 1024 bytes smem\n"
        "ptxas info    : Compiling entry function 'second' for 'sm_90'\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 79 registers, used 1 barriers\n"
    )
    assert _resources(report) == {
        "first": Resources(registers=32, spilled=116, stack=64, shared=1024),
        "second": Resources(registers=79, spilled=0, stack=0, shared=0),
    }


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
