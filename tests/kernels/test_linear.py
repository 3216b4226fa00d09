"""The linear layer against NumPy, for one row and for many."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from tests.kernels.conftest import built, sparse_matrix, structure, target_or_skip
from tvm_doping import schedules, structures
from tvm_doping.arrays import aligned_copy, aligned_zeros
from tvm_doping.kernels import linear


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("family", ["kronecker", "low_rank", "hybrid", "dense", "zero"])
def test_linear(family: str, target: str) -> None:
    machine, rng = target_or_skip(target), np.random.default_rng(5)
    w = structures.Doped(structure(rng, family, 52, 13), sparse_matrix(rng, 52, 13, 0.2))
    plan = schedules.choose_linear(w, target=machine, force={"structure": "kept"})
    bias = rng.standard_normal(52).astype("float32")
    arrays = linear.pack(plan, w, bias)
    function = built(plan, arrays, linear.prim_func, machine)
    for rows in (1, 3, 16, 45):
        x, y = rng.standard_normal((rows, 13)).astype("float32"), aligned_zeros((rows, 52), "float32")
        function(
            *(tvm.runtime.from_dlpack(a) for a in (*(aligned_copy(a) for a in (x, *arrays.values())), y))
        )
        true = x.astype("float64") @ w.to_dense().T + bias
        np.testing.assert_allclose(y, true, atol=3e-6)
        np.testing.assert_allclose(linear.reference(plan, arrays, x)[0], true, atol=3e-6)
