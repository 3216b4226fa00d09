"""The floor of a recurrence on a GPU: a kernel that does nothing but wait, all blocks for each other, once a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tvm_doping._tvm import IRBuilder, T, tirx, tvm
from tvm_doping.kernels.cuda.image import images
from tvm_doping.kernels.cuda.lowering import CUDA_PIPELINE
from tvm_doping.kernels.cuda.nvcc import fatbin
from tvm_doping.kernels.cuda.words import grid_barrier, int32, launch
from tvm_doping.targets import Target

NAME, THREADS = "barrier", 512


def function(blocks: int, threads: int = THREADS) -> Any:
    """barrier(steps_as_a_shape (steps,), counter (1,)): the counter must be 0 and is steps * blocks afterwards."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name(NAME)
        T.func_attr({"tirx.noalias": True, "doping.kernel": NAME})
        count = tirx.Var("steps", "int64")
        T.match_buffer(T.arg("steps_as_a_shape", T.handle()), (count,))
        counter = T.match_buffer(T.arg("counter", T.handle()), (1,), "int32")
        with launch(blocks, 1, threads), T.serial(0, int32(count)) as step:
            grid_barrier(counter, (step + 1) * blocks)
    return builder.get()


def build(path: Path, target: Target) -> None:
    """Write its library, of a block for each multiprocessor. Needs nvcc."""
    with images(lambda source: fatbin(source, target.gpu)) as pack:
        module = tvm.IRModule({NAME: function(target.multiprocessors)})
        tvm.tirx.build(module, target.tvm(), pipeline=CUDA_PIPELINE).export_library(
            str(path), fpack_imports=pack
        )
