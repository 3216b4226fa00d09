"""The kernel that times the barrier: all its blocks come to every barrier, and none is left out."""

from __future__ import annotations

import numpy as np

from tests.cuda.conftest import loaded
from tests.cuda.emulation import Driver, to_gpu
from tvm_doping.bench.cuda.barrier import function


def test_all_blocks_wait_at_every_step(emulated: Driver) -> None:
    barrier = loaded(function(blocks=3, threads=64), emulated, "barrier")
    counter = to_gpu(np.zeros(1, "int32"))
    emulated.log()
    barrier(to_gpu(np.zeros(5, "float32")), counter)
    assert counter.numpy()[0] == 15
    assert len(log := emulated.log()) == 1 and "cooperative" in log[0]
