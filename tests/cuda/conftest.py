"""Layers small enough to emulate, and one way to compile and run them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

import tvm_doping
from tests.cuda.emulation import Driver, driver, to_gpu
from tests.kernels.conftest import HIDDEN, INPUTS, sparse_matrix, structure
from tvm_doping import build, gpu, linking, schedules, structures, targets
from tvm_doping.kernels.cuda import lowering
from tvm_doping.kernels.cuda.image import images
from tvm_doping.kernels.cuda.lstm import prim_func
from tvm_doping.kernels.cuda.nvcc import fatbin
from tvm_doping.kernels.plan import Config, Grid, LstmPlan, Part, Product
from tvm_doping.kernels.product import part_of

# Three blocks of 5, 5 and 3 units; two warps a group of rows in the one, and four in the other.
GRID = Grid(parts=3, threads=128, tile_from=4, shared=100_000, registers=128)


# Few blocks: all threads of a launch are emulated at once.
SMALL = replace(targets.TARGETS["cuda-sm90"], multiprocessors=3)


@pytest.fixture(scope="session")
def emulated() -> Iterator[Driver]:
    """The emulated driver."""
    made = driver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def with_gpu(emulated: Driver) -> Iterator[Driver]:
    """A machine with the emulated GPU; images are those of nvcc where there is one."""
    asked = gpu.compute_capability
    asked.cache_clear()
    emulated.order("backward")

    def image(source: str, arch: str) -> bytes:
        try:
            return emulated.image(source, fatbin(source, arch))
        except tvm_doping.DopingError:
            return emulated.image(source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedules.grids, "THREADS", (64,))  # each is a fiber
        patch.setattr(linking, "fatbin", image)
        patch.setattr(build, "find_nvcc", lambda: "nvcc")
        yield emulated
    emulated.late("at once")
    asked.cache_clear()


def doped(family: str, density: float) -> tuple[Any, Any]:
    """W_ih and W_hh of a small layer."""
    rng = np.random.default_rng(0)
    ih, hh = (
        structures.Doped(structure(rng, family, 4 * HIDDEN, n), sparse_matrix(rng, 4 * HIDDEN, n, density))
        for n in (INPUTS, HIDDEN)
    )
    return ih, hh


def plan_of(
    w: tuple[Any, Any],
    *,
    values: Any = "fp32",
    order: Any = "left",
    reverse: bool = False,
    grid: Grid = GRID,
    format: str = "sell32",
) -> LstmPlan:
    """A plan of the layer, through JSON as on its way through the passes."""
    products = []
    for weight in w:
        part = part_of(weight)
        if part.kind == "dense":
            products.append(Product(part=part, values=values))
            continue
        part = Part(kind=part.kind, shape=part.shape, dims=part.dims, order=order)
        sparse = format if weight.S.nnz else None
        products.append(Product(part=part, sparse=sparse, nnz=int(weight.S.nnz), values=values))
    plan = LstmPlan(
        config=Config(lanes=1, registers=0, grid=grid),
        inputs=w[0].shape[1],
        hidden=w[1].shape[1],
        reverse=reverse,
        input=products[0],
        recurrent=products[1],
    )
    return LstmPlan.from_json(plan.to_json())


def built(function: Any, arch: str = "sm_90") -> Any:
    """The built module of a kernel's function."""
    target = tvm.target.Target({"kind": "cuda", "arch": arch}, host={"kind": "llvm", "mcpu": "x86-64-v2"})
    return tvm.tirx.build(tvm.IRModule({"f": function}), target, pipeline=lowering.CUDA_PIPELINE)


def loaded(function: Any, emulated: Driver, name: str = "f") -> Any:
    """The function of the exported and loaded library."""
    with tempfile.TemporaryDirectory() as folder, images(emulated.image) as pack:
        path = str(Path(folder) / "lib.so")
        built(function).export_library(path, fpack_imports=pack)
        return tvm.runtime.load_module(path)[name]


def compiled(plan: LstmPlan, arrays: dict[str, np.ndarray], emulated: Driver) -> Any:
    """The layer's function; one that another test has compiled for the same weights is the same."""
    digest = hashlib.sha256(plan.to_json().encode())
    for array in arrays.values():
        digest.update(array.tobytes())
    if digest.digest() not in _COMPILED:
        _COMPILED[digest.digest()] = loaded(prim_func(plan, arrays, "f"), emulated)
    return _COMPILED[digest.digest()]


_COMPILED: dict[bytes, Any] = {}


def run(
    function: Any, plan: LstmPlan, arrays: dict[str, np.ndarray], *inputs: np.ndarray
) -> list[np.ndarray]:
    """y, h and c of x, h0, c0."""
    steps, batch = inputs[0].shape[:2]
    shapes = ((steps, batch, plan.hidden), (batch, plan.hidden), (batch, plan.hidden))
    outputs = [to_gpu(np.full(shape, np.nan, "float32")) for shape in shapes]
    function(*map(to_gpu, inputs), *map(to_gpu, arrays.values()), *outputs)
    return [output.numpy() for output in outputs]
