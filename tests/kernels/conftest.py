"""One way to compile a kernel and run it on arrays, and the structures that the tests cross with formats and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import tvm
from scipy import sparse as sp

from tvm_doping import structures, targets
from tvm_doping.arrays import aligned_copy, aligned_zeros
from tvm_doping.kernels import LstmPlan, lstm
from tvm_doping.kernels.lowering import TIR_PIPELINE

# Two inputs and a hidden size that fill neither a vector nor a stripe: 52 gate rows, 12 and 13 columns.
INPUTS, HIDDEN = 12, 13


def target_or_skip(name: str) -> targets.Target:
    """The target of that name; skips where this CPU cannot run its code."""
    target = targets.resolve(name)
    missing = targets.missing_features(target.features)
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(missing)}, which {name} needs")
    return target


def sparse_matrix(rng: np.random.Generator, m: int, n: int, density: float) -> sp.csr_array:
    dense = rng.standard_normal((m, n)) * (rng.random((m, n)) < density)
    dense[m // 2] = 0  # an empty row
    return sp.csr_array(dense.astype("float32") * np.float32(0.3))


def structure(rng: np.random.Generator, family: str, m: int, n: int) -> Any:
    """A small structure of a family, (m, n), with m = 52 and n = 12 or 13."""

    def array(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.4).astype("float32")

    if family == "kronecker":
        return (
            structures.Kronecker(array(4, n), array(13, 1))
            if n == 13
            else structures.Kronecker(array(26, 3), array(2, 4))
        )
    if family == "low_rank":
        return structures.LowRank(array(m, 3), array(3, n))
    if family == "hybrid":
        return structures.Hybrid(array(21, n), array(m - 21, 2), array(2, n))
    if family == "dense":
        return structures.Dense(array(m, n))
    return structures.Zero((m, n))


def built(
    plan: Any, arrays: Mapping[str, np.ndarray], emit: Callable[..., Any], target: targets.Target
) -> Any:
    """The compiled function of a kernel; the plan has been through JSON, as on its way through the passes."""
    plan = type(plan).from_json(plan.to_json())
    module = tvm.IRModule({"f": emit(plan, arrays, "f")})
    return tvm.compile(module, target=target.tvm(), tir_pipeline=TIR_PIPELINE).mod["f"]


def run_lstm(
    function: Any,
    plan: LstmPlan,
    arrays: Mapping[str, np.ndarray],
    x: np.ndarray,
    h0: np.ndarray,
    c0: np.ndarray,
) -> list[np.ndarray]:
    steps, batch = x.shape[:2]
    outputs = [aligned_zeros(s, "float32") for s in ((steps, batch, plan.hidden), h0.shape, c0.shape)]
    every = [*(aligned_copy(a) for a in (x, h0, c0, *arrays.values())), *outputs]
    function(*(tvm.runtime.from_dlpack(a) for a in every))
    return outputs


def oracle(
    plan: LstmPlan, w: tuple[Any, Any], bias: np.ndarray, x: np.ndarray, h: np.ndarray, c: np.ndarray
) -> list[np.ndarray]:
    """The layer in float64, from the structures themselves: it shares no code with the kernels."""
    w_ih, w_hh = (s.to_dense().astype("float64") for s in w)
    h, c = h.astype("float64"), c.astype("float64")
    y = np.empty((*x.shape[:2], plan.hidden))
    for t in range(len(x))[:: -1 if plan.reverse else 1]:
        i, f, g, o = np.split(x[t] @ w_ih.T + h @ w_hh.T + bias, 4, axis=1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        y[t] = h
    return [y, h, c]


def check_lstm(
    w: tuple[Any, Any],
    plan: LstmPlan,
    target: targets.Target,
    shapes: list[tuple[int, int]],
    stored: tuple[Any, Any] | None = None,
) -> None:
    """Compiled = packed reference = float64 oracle, for every (T, N) with one compiled function.

    stored: the weights of the oracle, where `plan` rounds w.
    """
    rng = np.random.default_rng(7)
    bias = rng.standard_normal(4 * plan.hidden).astype("float32") * np.float32(0.3)
    arrays = lstm.pack(plan, *w, bias)
    function = built(plan, arrays, lstm.prim_func, target)
    for steps, batch in shapes:
        x = rng.standard_normal((steps, batch, plan.inputs)).astype("float32")
        h0, c0 = (rng.standard_normal((batch, plan.hidden)).astype("float32") for _ in range(2))
        got = run_lstm(function, plan, arrays, x, h0, c0)
        for name, a, b, true in zip(
            "yhc",
            got,
            lstm.reference(plan, arrays, x, h0, c0),
            oracle(plan, stored or w, bias, x, h0, c0),
            strict=True,
        ):
            np.testing.assert_allclose(a, true, atol=3e-6, err_msg=f"{name}, T={steps}, N={batch}")
            np.testing.assert_allclose(
                b, true, atol=3e-6, err_msg=f"the reference's {name}, T={steps}, N={batch}"
            )
