"""sigmoid and tanh: at most 2e-7 from the truth on a sweep of all magnitudes, exact limits, NaN kept."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from tests.kernels.conftest import target_or_skip
from tvm_doping._tvm import IRBuilder, T
from tvm_doping.arrays import aligned_copy, aligned_zeros
from tvm_doping.kernels.activations import sigmoid, sigmoid_tanh, tanh
from tvm_doping.kernels.emit import load, store
from tvm_doping.kernels.lowering import TIR_PIPELINE

COUNT = 1 << 16


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_error(name: str, target: str) -> None:
    machine = target_or_skip(target)
    emit, lanes = {"sigmoid": sigmoid, "tanh": tanh}[name], machine.lanes
    with IRBuilder() as builder, T.prim_func():
        T.func_name("f")
        T.func_attr({"doping.kernel": name})
        x, y = (T.match_buffer(T.arg(key, T.handle()), (COUNT,)) for key in "xy")
        with T.serial(0, COUNT // lanes) as i:
            store(y, i * lanes, emit(load(x, i * lanes, lanes), lanes), lanes)
    function = tvm.compile(
        tvm.IRModule({"f": builder.get()}), target=machine.tvm(), tir_pipeline=TIR_PIPELINE
    ).mod["f"]

    half = np.concatenate([np.linspace(0, 20, COUNT // 4), np.geomspace(1e-30, 3e38, COUNT // 4)])
    points = np.concatenate([-half, half]).astype("float32")
    points[:3] = np.inf, -np.inf, np.nan
    out = aligned_zeros((COUNT,), "float32")
    function(*(tvm.runtime.from_dlpack(a) for a in (aligned_copy(points), out)))
    with np.errstate(over="ignore"):
        wide = points.astype("float64")
        true = np.tanh(wide) if name == "tanh" else 1 / (1 + np.exp(-wide))
    assert np.isnan(out[2]) and out[0] == 1.0 and abs(out[1] - true[1]) <= 2e-7
    np.testing.assert_allclose(out[3:], true[3:], atol=2e-7, rtol=0)


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_error_of_the_product(target: str) -> None:
    """Also where both exponentials are huge, and their product would overflow."""
    machine = target_or_skip(target)
    lanes = machine.lanes
    half = np.concatenate([np.linspace(0, 20, 64), np.geomspace(1e-30, 3e38, 63), [np.inf]])
    points = np.concatenate([-half, half]).astype("float32")
    first, second = (grid.ravel() for grid in np.meshgrid(points, points))
    with IRBuilder() as builder, T.prim_func():
        T.func_name("f")
        T.func_attr({"doping.kernel": "sigmoid_tanh"})
        x, y, z = (T.match_buffer(T.arg(key, T.handle()), (first.size,)) for key in "xyz")
        with T.serial(0, first.size // lanes) as i:
            a, b = (load(buffer, i * lanes, lanes) for buffer in (x, y))
            store(z, i * lanes, sigmoid_tanh(a, b, lanes), lanes)
    function = tvm.compile(
        tvm.IRModule({"f": builder.get()}), target=machine.tvm(), tir_pipeline=TIR_PIPELINE
    ).mod["f"]
    inputs, out = [aligned_copy(first), aligned_copy(second)], aligned_zeros(first.shape, "float32")
    inputs[0][0], inputs[1][1] = np.nan, np.nan
    function(*(tvm.runtime.from_dlpack(a) for a in (*inputs, out)))
    with np.errstate(over="ignore"):
        wide = [array.astype("float64") for array in inputs]
        true = np.tanh(wide[1]) / (1 + np.exp(-wide[0]))
    assert np.isnan(out[:2]).all()
    np.testing.assert_allclose(out[2:], true[2:], atol=3e-7, rtol=0)
