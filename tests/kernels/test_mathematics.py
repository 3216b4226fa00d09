"""exp, sigmoid, tanh and erf in TVM's own functions: near the truth at all magnitudes, exact limits, NaN kept, no libm."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from scipy import special

from tests.kernels.conftest import target_or_skip
from tvm_doping._tvm import te, tirx
from tvm_doping.arrays import aligned_copy, aligned_zeros
from tvm_doping.kernels.lowering import TIR_PIPELINE

COUNT = 1 << 14
TRUTH = {"exp": np.exp, "sigmoid": special.expit, "tanh": np.tanh, "erf": special.erf}


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("name", TRUTH)
def test_error(name: str, target: str) -> None:
    machine = target_or_skip(target)
    x = te.placeholder((COUNT,), name="x")
    y = te.compute((COUNT,), lambda i: getattr(tirx, name)(x[i]), name="y")
    module = tvm.IRModule({"f": te.create_prim_func([x, y]).with_attr("global_symbol", "f")})
    library = tvm.compile(module, target=machine.tvm(), tir_pipeline=TIR_PIPELINE).mod
    assert f"{name}f" not in library.inspect_source("s")

    half = np.concatenate([np.linspace(0, 20, COUNT // 4), np.geomspace(1e-30, 3e38, COUNT // 4)])
    points = np.concatenate([-half, half]).astype("float32")
    points[:3] = np.inf, -np.inf, np.nan
    out = aligned_zeros((COUNT,), "float32")
    library["f"](*(tvm.runtime.from_dlpack(a) for a in (aligned_copy(points), out)))
    with np.errstate(over="ignore"):
        true = TRUTH[name](points.astype("float64")).astype("float32")
    assert np.isnan(out[2])
    if name == "exp":
        assert out[0] == np.inf
        assert out[1] == 0.0
        np.testing.assert_allclose(out[3:], true[3:], rtol=4e-7, atol=1e-37)
    else:
        np.testing.assert_allclose(
            np.delete(out, 2), np.delete(true, 2), rtol=0, atol=5e-7 if name == "erf" else 2e-7
        )
