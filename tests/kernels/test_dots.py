"""Dot products of narrow weights and inputs: portable twins of Arm's instructions on this CPU, and what they mean in NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tvm

from tests.kernels.conftest import HIDDEN, INPUTS, built, run_lstm, sparse_matrix, structure, target_or_skip
from tvm_doping import schedules, structures, targets
from tvm_doping.arrays import aligned_copy, aligned_zeros
from tvm_doping.kernels import LinearPlan, linear, lstm
from tvm_doping.kernels.lowering import TIR_PIPELINE
from tvm_doping.sparsity.dots import DOTS, round_inputs

ARM = targets.resolve("cortex-a72")
ROWS, COLUMNS = 52, 75


def planned(plan: Any, name: str, tile: int) -> Any:
    """The plan with its products by that instruction, in tiles of so many streams."""
    made = {
        key: replace(getattr(plan, key), values=DOTS[name].values, dot=name) for key in type(plan).products
    }
    numbers = (
        {"tile": tile, "tile_from": 2, "steps": tile, "steps_from": 2} if tile else {"tile": 0, "steps": 0}
    )
    return replace(plan, config=replace(plan.config, portable=True, gather="", **numbers), **made)


def weight(family: str, format: str | None) -> tuple[Any, dict[str, str]]:
    rng = np.random.default_rng(3)

    def array(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.3).astype("float32")

    base = {
        "dense": lambda: structures.Dense(array(ROWS, COLUMNS)),
        "hybrid": lambda: structures.Hybrid(array(21, COLUMNS), array(ROWS - 21, 5), array(5, COLUMNS)),
        "low_rank": lambda: structures.LowRank(array(ROWS, 5), array(5, COLUMNS)),
        "zero": lambda: structures.Zero((ROWS, COLUMNS)),
    }[family]()
    if format is None:
        return base, {"structure": "kept"}
    return structures.Doped(base, sparse_matrix(rng, ROWS, COLUMNS, 0.2)), {"format": format}


# Emulated cores run the rest (tests/emulated): the twins of the instructions are slow to compile.
CASES = [
    ("bfdot", "hybrid", None, 8),
    ("bfdot", "low_rank", "block8", 4),
    ("smmla", "dense", None, 8),
    ("sdot", "hybrid", None, 4),
    ("fmlal", "low_rank", "block8", 8),
    ("fmlal", "dense", None, 4),
    ("fmla", "dense", None, 4),
    ("fmla", "zero", "block8", 4),
]


@pytest.mark.parametrize(("name", "family", "format", "tile"), CASES)
def test_streams_and_tiles(name: str, family: str, format: str | None, tile: int) -> None:
    """One stream, tiles and a rest give what NumPy gives; and each stream the same whatever runs beside it."""
    machine, (w, force) = target_or_skip("x86-64-v3"), weight(family, format)
    plan = planned(schedules.choose_linear(w, target=ARM, force=force), name, tile)
    assert isinstance(plan, LinearPlan) and plan.product.sparse == format
    rng = np.random.default_rng(1)
    arrays = linear.pack(plan, w, rng.standard_normal(ROWS).astype("float32"))
    function = built(plan, arrays, linear.prim_func, machine)
    x = rng.standard_normal((tile + 1, COLUMNS)).astype("float32")
    wanted = linear.reference(plan, arrays, x)[0]
    together, alone = (
        run(function, arrays, x),
        np.concatenate([run(function, arrays, x[k : k + 1]) for k in range(3)]),
    )
    # V z, which is rounded too, may differ in its last bit
    near = {"hybrid": 1e-2, "low_rank": 4e-3}.get(family, 5e-5)
    np.testing.assert_allclose(together, wanted, atol=near)
    np.testing.assert_allclose(alone, together[:3], atol=near)
    exact = x @ w.to_dense().T + arrays["bias"]
    assert np.abs(wanted - exact).max() > 1e-4  # it does round


def run(function: Any, arrays: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    y = aligned_zeros((len(x), ROWS), "float32")
    every = [aligned_copy(x), *(aligned_copy(a) for a in arrays.values()), y]
    function(*(tvm.runtime.from_dlpack(a) for a in every))
    return y


def test_a_number_that_is_none_reaches_its_stream_and_no_other() -> None:
    machine, (w, force) = target_or_skip("x86-64-v3"), weight("dense", None)
    plan = planned(schedules.choose_linear(w, target=ARM, force=force), "sdot", 4)
    arrays = linear.pack(plan, w, np.zeros(ROWS, "float32"))
    function = built(plan, arrays, linear.prim_func, machine)
    x = np.random.default_rng(1).standard_normal((4, COLUMNS)).astype("float32")
    x[1, 3], x[2, 5], x[3] = np.nan, np.inf, 0
    for y in (run(function, arrays, x), np.concatenate([run(function, arrays, row[None]) for row in x])):
        assert np.isfinite(y[0]).all() and np.isnan(y[1:3]).all() and not y[3].any()


def test_lstm() -> None:
    """Both products, inputs projected ahead: NumPy's results, up to what a number makes that is rounded the other way."""
    machine, rng = target_or_skip("x86-64-v3"), np.random.default_rng(2)
    ih, hh = (structure(rng, "dense", 4 * HIDDEN, n) for n in (INPUTS, HIDDEN))
    plan = planned(schedules.choose_lstm(ih, hh, reverse=False, target=ARM), "sdot", 4)
    arrays = lstm.pack(plan, ih, hh, rng.standard_normal(4 * HIDDEN).astype("float32"))
    function = built(plan, arrays, lstm.prim_func, machine)
    for steps, batch in ((6, 1), (2, 5)):
        x = rng.standard_normal((steps, batch, INPUTS)).astype("float32")
        h, c = (rng.standard_normal((batch, HIDDEN)).astype("float32") for _ in range(2))
        for got, wanted in zip(
            run_lstm(function, plan, arrays, x, h, c), lstm.reference(plan, arrays, x, h, c), strict=True
        ):
            np.testing.assert_allclose(got, wanted, atol=5e-3)


@pytest.mark.parametrize(
    ("target", "precision", "wanted"),
    [
        ("neoverse-v1", "bf16", ("bfdot", "bfmmla", "bfcvtn")),
        ("neoverse-v1", "int8", ("smmla", "sdot")),
        ("neoverse-v1", "fp16", ("fmlal", "fmlal2")),
        ("cortex-a76", "int8", ("sdot",)),
        ("cortex-a76", "fp16", (".8h",)),
    ],
)
def test_the_instructions_are_used_and_the_imported_functions_inlined(
    target: str, precision: Any, wanted: tuple[str, ...]
) -> None:
    machine = targets.resolve(target)
    w = structures.Dense(np.ones((64, 64), "float32"))
    plan = schedules.choose_linear(w, target=machine, precision=precision)
    assert plan.product.dot and f"by {plan.product.dot}" in plan.reason
    arrays = linear.pack(plan, w, np.zeros(64, "float32"))
    module = tvm.IRModule({name: linear.prim_func(plan, arrays, name) for name in ("f", "g")})
    code = tvm.compile(module, target=machine.tvm(), tir_pipeline=TIR_PIPELINE).mod.inspect_source("s")
    for instruction in wanted:
        assert instruction in code
    assert "doping_" not in code.replace("doping_pool", "")


def test_int8_inputs_of_different_streams_do_not_share_a_scale() -> None:
    x = np.array([[1.0, 0.3], [100.0, 0.3]], "float32")
    rounded = round_inputs(x, "int8")
    assert abs(rounded[0, 1] - 0.3) < 0.01 < abs(rounded[1, 1] - 0.3)
