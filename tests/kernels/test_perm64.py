"""perm64: the portable twins on any CPU, the instructions where there are some, and what the compiler makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from scipy import sparse as sp

from tests.kernels.conftest import HIDDEN, INPUTS, built, run_lstm, sparse_matrix, target_or_skip
from tvm_doping import schedules, structures, targets
from tvm_doping.arrays import aligned_copy, aligned_zeros
from tvm_doping.kernels import LinearPlan, LstmPlan, linear, lstm
from tvm_doping.kernels.lowering import TIR_PIPELINE

RICH = targets.resolve("x86-64-v4-bf16")
FORCE = {"format": "perm64"}


def bf16(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x.astype("float32")).to(torch.bfloat16).double().numpy()


def portable(plan: Any) -> Any:
    return replace(plan, config=replace(plan.config, portable=True, registers=16))


def linear_plan(w: structures.Doped, multiple: int, grouped: int, target: targets.Target) -> LinearPlan:
    plan = schedules.choose_linear(w, target=RICH, precision="bf16", force=FORCE)
    plan = replace(plan, product=replace(plan.product, params={"multiple": multiple, "grouped": grouped}))
    return plan if target is RICH else portable(plan)


def run_linear(function: Any, arrays: dict[str, np.ndarray], x: np.ndarray, outputs: int) -> np.ndarray:
    y = aligned_zeros((len(x), outputs), "float32")
    function(*(tvm.runtime.from_dlpack(a) for a in (*map(aligned_copy, (x, *arrays.values())), y)))
    return y


@pytest.mark.parametrize("target", ["x86-64-v3", RICH.name])
@pytest.mark.parametrize("grouped", [0, 1])
@pytest.mark.parametrize("multiple", [1, 2, 4])
def test_s_and_x_are_rounded_for_every_number_of_streams(multiple: int, grouped: int, target: str) -> None:
    machine, rng = target_or_skip(target), np.random.default_rng(5)
    s = sparse_matrix(rng, 52, 150, 0.2)
    low_rank = structures.LowRank(
        *((0.3 * rng.standard_normal(d)).astype("float32") for d in ((52, 2), (2, 150)))
    )
    w = structures.Doped(low_rank, s)
    plan, bias = linear_plan(w, multiple, grouped, machine), rng.standard_normal(52).astype("float32")
    arrays = linear.pack(plan, w, bias)
    function = built(plan, arrays, linear.prim_func, machine)
    base = bf16(low_rank.U) @ bf16(low_rank.V)  # of which only the values are rounded
    for rows in (1, 2, 16, 17):
        x = rng.standard_normal((rows, 150)).astype("float32")
        wanted = x @ base.T + bf16(x) @ bf16(s.toarray()).T + bias
        np.testing.assert_allclose(run_linear(function, arrays, x, 52), wanted, atol=2e-5)
        np.testing.assert_allclose(linear.reference(plan, arrays, x)[0], wanted, atol=2e-5)


def test_ties_and_numbers_that_are_none() -> None:
    """What x is rounded to reaches y: the identity matrix shows it."""
    machine, s = target_or_skip("x86-64-v3"), sp.eye_array(16, dtype="float32", format="csr")
    w = structures.Doped(structures.Zero(s.shape), s)
    plan = linear_plan(w, 1, 0, machine)
    arrays = linear.pack(plan, w, np.zeros(16, "float32"))
    function = built(plan, arrays, linear.prim_func, machine)
    x = np.array([[1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3.0e38, 1e-30, *([0.1] * 11)]], "float32")
    np.testing.assert_array_equal(run_linear(function, arrays, x, 16), bf16(x))
    x[0, 0] = np.nan  # the column that pads the second entry of each lane: 0 * NaN is NaN in all of them
    assert np.isnan(run_linear(function, arrays, x, 16)).all()


@pytest.mark.parametrize("target", ["x86-64-v3", RICH.name])
def test_lstm(target: str) -> None:
    """Streams side by side have the results that each has alone, and those of NumPy."""
    machine, (plan, arrays) = target_or_skip(target), lstm_layer()
    plan = plan if machine is RICH else portable(plan)
    function, rng = built(plan, arrays, lstm.prim_func, machine), np.random.default_rng(2)
    x = rng.standard_normal((2, 17, INPUTS)).astype("float32")
    h, c = (rng.standard_normal((17, HIDDEN)).astype("float32") for _ in range(2))
    wanted = lstm.reference(plan, arrays, x, h, c)
    parts = [
        run_lstm(function, plan, arrays, np.ascontiguousarray(x[:, k : k + 1]), h[k : k + 1], c[k : k + 1])
        for k in range(17)
    ]
    alone = [np.concatenate(part, axis=-2) for part in zip(*parts, strict=True)]
    for a, b, true in zip(run_lstm(function, plan, arrays, x, h, c), alone, wanted, strict=True):
        np.testing.assert_allclose(a, true, atol=2e-4)  # a number of the last bit may round the other way
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_the_instructions_are_used_and_the_imported_functions_inlined() -> None:
    """Two kernels of two products and several widths: no call of the functions is left, nor one of their names twice."""
    plan, arrays = lstm_layer()
    module = tvm.IRModule({name: lstm.prim_func(plan, arrays, name) for name in ("f", "g")})
    code = tvm.compile(module, target=RICH.tvm(), tir_pipeline=TIR_PIPELINE).mod.inspect_source("s")
    for instruction in ("vdpbf16ps", "vcvtneps2bf16"):
        assert instruction in code
    assert "vpermt2w" in code or "vpermi2w" in code
    assert "doping_dot_bf16" not in code and "doping_round_bf16" not in code


def lstm_layer() -> tuple[LstmPlan, dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    ih, hh = (
        structures.Doped(structures.Zero((52, n)), sparse_matrix(rng, 52, n, 0.3)) for n in (INPUTS, HIDDEN)
    )
    plan = schedules.choose_lstm(ih, hh, reverse=False, target=RICH, precision="bf16", force=FORCE)
    assert plan.input.sparse == plan.recurrent.sparse == "perm64"
    return plan, lstm.pack(plan, ih, hh, rng.standard_normal(52).astype("float32"))
