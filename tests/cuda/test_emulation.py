"""That the emulation finds what it is there to find: barriers left out, in the wrong place, or of blocks that cannot all run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.cuda.conftest import loaded
from tests.cuda.emulation import ORDERS, Driver, to_gpu
from tvm_doping._tvm import IRBuilder, T
from tvm_doping.kernels.cuda.words import Arena, grid_barrier, launch, when


def neighbours(barrier: str, blocks: int = 2) -> Any:
    """y[b, t] = x[b, t - 1 or the last], by way of shared memory."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name("f")
        T.func_attr({"tirx.noalias": True, "doping.kernel": "test"})
        x, y = (T.match_buffer(T.arg(name, T.handle()), (blocks, 64)) for name in "xy")
        counter = T.match_buffer(T.arg("counter", T.handle()), (1,), "int32")
        arena = Arena()
        shared = arena.take(64)
        with launch(blocks, 1, 64) as block:
            arena.open()
            shared.store(block.tx, x[block.x, block.tx])
            if barrier == "block":
                block.sync()
            if barrier == "some":
                with when(block.tx < 40):
                    block.sync()
            if barrier == "grid":
                grid_barrier(counter, blocks)
            T.buffer_store(y, shared[(block.tx + 63) % 64], [block.x, block.tx])
    return builder.get()


def result(function: Any, blocks: int = 2) -> tuple[np.ndarray, np.ndarray]:
    x = np.arange(blocks * 64, dtype="float32").reshape(blocks, 64)
    y = to_gpu(np.zeros_like(x))
    function(to_gpu(x), y, to_gpu(np.zeros(1, "int32")))
    return y.numpy(), np.roll(x, 1, axis=1)


@pytest.mark.parametrize("barrier", ["block", "grid"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_makes_every_order_right(emulated: Driver, barrier: str, order: str) -> None:
    function = loaded(neighbours(barrier), emulated)
    emulated.order(order)
    np.testing.assert_array_equal(*result(function))


def test_a_missing_barrier_is_wrong_in_some_order(emulated: Driver) -> None:
    function = loaded(neighbours("none"), emulated)
    wrong = 0
    for order in ORDERS:
        emulated.order(order)
        wrong += not np.array_equal(*result(function))
    assert wrong


def test_a_barrier_for_some_threads_of_a_block_is_an_error(emulated: Driver) -> None:
    function = loaded(neighbours("some"), emulated)
    with pytest.raises(Exception, match="wait"):
        result(function)


def test_a_barrier_of_more_blocks_than_can_run_is_refused(emulated: Driver) -> None:
    function = loaded(neighbours("grid", 300), emulated)
    with pytest.raises(Exception, match="too many blocks in cooperative launch"):
        result(function, 300)
