"""perm2x32: the portable twins on any CPU, the instructions where there are some; windows that S makes beyond two look-ups."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm

from tests.kernels.conftest import built, sparse_matrix, structure, target_or_skip
from tvm_doping import schedules, structures, targets
from tvm_doping.arrays import aligned_copy, aligned_zeros
from tvm_doping.kernels import linear, product
from tvm_doping.sparsity.values import ValueType

COLUMNS = 211  # four windows side by side, and no multiple of a register


def planned(w: Any, target: targets.Target, params: dict[str, int], values: ValueType = "fp32") -> Any:
    """The plan that AVX-512 takes; on other CPUs with the twins of its instructions."""
    plan = schedules.choose_linear(w, target=targets.resolve("x86-64-v4"), force={"format": "perm2x32"})
    plan = replace(plan, product=replace(plan.product, params=params, values=values))
    if target.name == "x86-64-v4":
        return plan
    return replace(plan, config=replace(plan.config, portable=True, registers=16))


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("grouped", [0, 1])
@pytest.mark.parametrize("multiple", [1, 2, 4])
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_every_number_of_streams(density: float, multiple: int, grouped: int, target: str) -> None:
    machine, rng = target_or_skip(target), np.random.default_rng(7)
    s = sparse_matrix(rng, 52, COLUMNS, density)
    w = structures.Doped(structure(rng, "dense", 52, COLUMNS), s)
    plan = planned(w, machine, {"multiple": multiple, "grouped": grouped})
    run(w, plan, machine, rng, w.to_dense())


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("values", ["fp16", "bf16", "int8"])
def test_narrow_values(values: ValueType, target: str) -> None:
    machine, rng = target_or_skip(target), np.random.default_rng(8)
    s = sparse_matrix(rng, 52, COLUMNS, 0.2)
    w = structures.Doped(structures.Zero(s.shape), s)
    plan = planned(w, machine, {"multiple": 2, "grouped": 1}, values)
    rounded = product.to_dense(plan.product, product.pack(plan.product, w, plan.config))
    assert 0 < np.abs(rounded - s.toarray()).max() < 0.01
    run(w, plan, machine, rng, rounded)


def run(w: Any, plan: Any, target: targets.Target, rng: np.random.Generator, dense: np.ndarray) -> None:
    """y = W x + bias for a stream alone, a whole tile, and what is left over, against NumPy in float64."""
    bias = rng.standard_normal(52).astype("float32")
    arrays = linear.pack(plan, w, bias)
    function = built(plan, arrays, linear.prim_func, target)
    for rows in (1, 2, 16, 17):
        x, y = rng.standard_normal((rows, COLUMNS)).astype("float32"), aligned_zeros((rows, 52), "float32")
        function(*(tvm.runtime.from_dlpack(a) for a in (*map(aligned_copy, (x, *arrays.values())), y)))
        np.testing.assert_allclose(y, x.astype("float64") @ dense.T.astype("float64") + bias, atol=2e-4)
        np.testing.assert_allclose(linear.reference(plan, arrays, x)[0], y, atol=2e-4)
