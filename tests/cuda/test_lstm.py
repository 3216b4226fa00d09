"""LSTM layers on the emulated GPU against float64: what TVM's CUDA runtime runs, whichever thread comes first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.cuda.conftest import GRID, compiled, doped, plan_of, run
from tests.cuda.emulation import ORDERS, Driver
from tests.kernels.conftest import HIDDEN, INPUTS, oracle, sparse_matrix
from tvm_doping import structures
from tvm_doping.kernels.cuda.lstm import pack, to_dense

# A step, and one of two streams; a sequence; tiles of one step; full and filled-up tiles over steps.
SHAPES = [(1, 1), (1, 2), (5, 2), (1, 4), (3, 37)]


def check(
    emulated: Driver, w: tuple[Any, Any], plan: Any, shapes: list[tuple[int, int]], orders: list[str]
) -> None:
    rng = np.random.default_rng(7)
    bias = rng.standard_normal(4 * plan.hidden).astype("float32") * np.float32(0.3)
    arrays = pack(plan, *w, bias)
    w_ih, w_hh, b = to_dense(plan, arrays)
    np.testing.assert_array_equal(b, bias)
    if plan.input.values == plan.recurrent.values == "fp32":
        for packed, weight in ((w_ih, w[0]), (w_hh, w[1])):
            np.testing.assert_allclose(packed, weight.to_dense(), atol=1e-6)
    stored = (structures.Dense(w_ih), structures.Dense(w_hh))
    function = compiled(plan, arrays, emulated)
    for order in orders:
        emulated.order(order)
        for steps, batch in shapes:
            x = rng.standard_normal((steps, batch, plan.inputs)).astype("float32")
            h, c = (rng.standard_normal((batch, plan.hidden)).astype("float32") for _ in range(2))
            got = run(function, plan, arrays, x, h, c)
            for name, a, true in zip("yhc", got, oracle(plan, stored, bias, x, h, c), strict=True):
                np.testing.assert_allclose(
                    a, true, atol=3e-6, err_msg=f"{name}, T={steps}, N={batch}, {order}"
                )


@pytest.mark.parametrize("reverse", [False, True])
def test_doped_layer_in_every_order_of_threads(emulated: Driver, reverse: bool) -> None:
    w = doped("kronecker", 0.25)
    check(emulated, w, plan_of(w, reverse=reverse), SHAPES, list(ORDERS))


@pytest.mark.parametrize("values", ["fp16", "bf16", "int8"])
def test_narrow_values_are_summed_in_fp32(emulated: Driver, values: str) -> None:
    w = doped("kronecker", 0.25)
    check(emulated, w, plan_of(w, values=values), [(2, 1), (2, 5)], ["backward"])


@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_dense_weights(emulated: Driver, values: str) -> None:
    w = tuple(structures.Dense(d.to_dense()) for d in doped("kronecker", 0.25))
    check(emulated, w, plan_of(w, values=values), [(1, 1), (3, 2), (2, 5)], ["backward"])  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["left", "right"])
def test_kronecker_alone_in_both_orders(emulated: Driver, order: str) -> None:
    rng = np.random.default_rng(3)
    shapes = ((4, 13), (13, 1)) if order == "left" else ((52, 1), (1, 13))
    factors = [(rng.standard_normal(s) * 0.4).astype("float32") for s in shapes]
    ih = [(rng.standard_normal(s) * 0.4).astype("float32") for s in ((26, 3), (2, 4))]
    empty = [sparse_matrix(rng, 52, n, 0.0) for n in (INPUTS, HIDDEN)]
    w = tuple(
        structures.Doped(structures.Kronecker(*f), s) for f, s in zip((ih, factors), empty, strict=True)
    )
    check(emulated, w, plan_of(w, order=order), [(1, 1), (3, 2), (2, 5)], ["forward", "backward"])  # type: ignore[arg-type]


def test_pruned_weights_of_uneven_rows_in_one_block_and_from_global_memory(emulated: Driver) -> None:
    """All units in one block, and no room to keep the weights in."""
    w = doped("zero", 0.3)
    grid = replace(GRID, parts=1, shared=0)
    check(emulated, w, plan_of(w, grid=grid), [(1, 2), (4, 1), (2, 33)], ["shuffled"])


def test_nan_stays_nan(emulated: Driver) -> None:
    """A GPU's min and max drop a NaN, which the clamps of the activations must not."""
    w = doped("kronecker", 0.25)
    plan = plan_of(w)
    arrays = pack(plan, *w, np.zeros(4 * HIDDEN, "float32"))
    zeros = np.zeros((1, HIDDEN), "float32")
    x = np.full((1, 1, INPUTS), np.nan, "float32")
    assert np.isnan(run(compiled(plan, arrays, emulated), plan, arrays, x, zeros, zeros)[0]).all()


def test_one_launch_a_step_and_one_for_a_sequence(emulated: Driver) -> None:
    w = doped("kronecker", 0.25)
    plan = plan_of(w)
    arrays = pack(plan, *w, np.zeros(4 * HIDDEN, "float32"))
    function = compiled(plan, arrays, emulated)
    for steps, batch, launches, cooperative in ((1, 1, 1, 0), (9, 1, 3, 1), (1, 40, 4, 1), (4, 40, 4, 1)):
        emulated.log()
        run(
            function,
            plan,
            arrays,
            *(np.zeros(s, "float32") for s in ((steps, batch, INPUTS), (batch, HIDDEN), (batch, HIDDEN))),
        )
        log = emulated.log()
        assert (len(log), sum("cooperative" in line for line in log)) == (launches, cooperative), log
