"""The fused LSTM layer: every format, family, direction and target against float64, for dynamic T and N."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tvm
from scipy import sparse as sp

from tests.kernels.conftest import (
    HIDDEN,
    INPUTS,
    built,
    check_lstm,
    run_lstm,
    sparse_matrix,
    structure,
    target_or_skip,
)
from tvm_doping import schedules, structures, targets
from tvm_doping.kernels import LstmPlan, lstm
from tvm_doping.kernels.lowering import TIR_PIPELINE
from tvm_doping.kernels.sparse import EMITTERS, ROUNDING

# One step and stream; a sequence that fills tiles of steps and leaves a remainder; a batch short of a tile; tiles and a rest.
SHAPES = [(1, 1), (39, 1), (3, 5), (2, 37)]


def doped(family: str, density: float, seed: int = 0) -> tuple[structures.Doped, structures.Doped]:
    rng = np.random.default_rng(seed)
    ih, hh = (
        structures.Doped(structure(rng, family, 4 * HIDDEN, n), sparse_matrix(rng, 4 * HIDDEN, n, density))
        for n in (INPUTS, HIDDEN)
    )
    return ih, hh


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("format", sorted(set(EMITTERS) - ROUNDING))
def test_every_format_on_avx512(format: str, reverse: bool) -> None:
    target, w = target_or_skip("x86-64-v4"), doped("kronecker", 0.25)
    plan = schedules.choose_lstm(*w, reverse=reverse, target=target, force={"format": format})
    assert plan.input.sparse == plan.recurrent.sparse == format
    check_lstm(w, plan, target, SHAPES)


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("format", ["csr", "sell16", "block4", "block8", "block16"])
def test_half_vectors_for_a_batch_that_fits_them(format: str, target: str) -> None:
    """On other CPUs LLVM splits the registers that hold two rows."""
    machine, w = target_or_skip(target), doped("kronecker", 0.25)
    wide = targets.resolve("x86-64-v4")
    plan = schedules.choose_lstm(*w, reverse=False, target=wide, batch=8, force={"format": format})
    assert (plan.config.lanes, plan.config.registers, plan.config.full) == (8, 32, 16)
    check_lstm(w, plan, machine, [*SHAPES, (3, 8)])


@pytest.mark.parametrize(
    ("format", "multiple"),
    [
        *(("perm8", multiple) for multiple in (2, 4)),
        *((name, multiple) for name in ("perm32", "perm32_expand", "perm2x32") for multiple in (1, 2, 4)),
    ],
)
def test_rows_grouped_by_how_alike_they_are(format: str, multiple: int) -> None:
    """Rows of very different lengths, as training leaves them, in groups of rows about as long: sums find their places."""
    target = target_or_skip("x86-64-v3" if format == "perm8" else "x86-64-v4")
    rng = np.random.default_rng(6)
    density = rng.permuted(np.tile(np.linspace(0.0, 0.6, 8), 20))
    mask = rng.random((160, 40)) < density[:, None]
    s = sp.csr_array((mask * rng.standard_normal(mask.shape) * 0.2).astype("float32"))
    w = (structures.Doped(structures.Zero(s.shape), s),) * 2
    plan = schedules.choose_lstm(*w, reverse=False, target=target, force={"format": format})
    grouped = replace(plan.input, params={"multiple": multiple, "grouped": 1})
    check_lstm(w, replace(plan, input=grouped, recurrent=grouped), target, SHAPES)


@pytest.mark.parametrize(
    ("target", "format"),
    [
        *(("x86-64-v2", name) for name in ("csr", "sell16", "block4", "block16")),
        *(("x86-64-v3", name) for name in ("csr", "sell16", "perm8", "block4", "block16")),
    ],
)
def test_formats_on_older_cpus(target: str, format: str) -> None:
    machine, w = target_or_skip(target), doped("kronecker", 0.25)
    check_lstm(
        w, schedules.choose_lstm(*w, reverse=False, target=machine, force={"format": format}), machine, SHAPES
    )


@pytest.mark.parametrize("format", ["csr", "sell16", "block4", "block8", "block16", "dense", "low_rank"])
def test_tiles_of_two_vectors(format: str) -> None:
    """Whole tiles, a padded one, and streams that are left over."""
    family = format if format == "low_rank" else "kronecker"
    target, w = target_or_skip("x86-64-v3"), doped(family, 0.25 if format != "dense" else 0.9)
    force = {"format": format} if format in EMITTERS else None
    plan = schedules.choose_lstm(*w, reverse=False, target=target, batch=32, force=force)
    plan = replace(plan, config=replace(plan.config, tile_from=4))
    assert plan.config.tile == 16
    check_lstm(w, plan, target, [(2, 1), (3, 16), (2, 37), (2, 35), (2, 4)])


@pytest.mark.parametrize(
    ("format", "batch"),
    [("sell16", 4), *((name, 32) for name in ("csr", "sell16", "perm8", "block16", "dense"))],
)
def test_every_number_of_streams_to_64(format: str, batch: int) -> None:
    """Whatever number of streams it was compiled for: all tiles, padded tiles and rests."""
    target, w = target_or_skip("x86-64-v3"), doped("kronecker", 0.25 if format != "dense" else 0.9)
    force = {"format": format} if format in EMITTERS else None
    plan = schedules.choose_lstm(*w, reverse=False, target=target, batch=batch, force=force)
    assert {plan.input.format, plan.recurrent.format} == {format}
    assert plan.config.tile == (4 if batch == 4 else 16)
    check_lstm(w, plan, target, [(2, streams) for streams in range(1, 65)])


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("family", ["kronecker", "low_rank", "hybrid", "dense", "zero"])
def test_families(family: str, target: str) -> None:
    machine, w = target_or_skip(target), doped(family, 0.1)
    plan = schedules.choose_lstm(*w, reverse=False, target=machine, force={"structure": "kept"})
    check_lstm(w, plan, machine, SHAPES)


@pytest.mark.parametrize("family", ["kronecker", "low_rank", "dense"])
def test_multiplied_out(family: str) -> None:
    """A plan may have the whole weight as a dense matrix, whatever structure it has."""
    machine, w = target_or_skip("x86-64-v3"), doped(family, 0.6)
    plan = schedules.choose_lstm(*w, reverse=False, target=machine)
    assert plan.input.format == plan.recurrent.format == "dense" and plan.input.nnz == 0
    check_lstm(w, plan, machine, SHAPES)


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("format", ["csr", "sell16"])
def test_no_hardware_gather(format: str, target: str) -> None:
    """It takes longer than single loads, so the code has none, whatever LLVM makes of them. Any CPU can compile this."""
    machine, w = targets.resolve(target), doped("zero", 0.25)
    plan = schedules.choose_lstm(*w, reverse=False, target=machine, force={"format": format})
    arrays = lstm.pack(plan, *w, np.zeros(4 * HIDDEN, "float32"))
    module = tvm.IRModule({"f": lstm.prim_func(plan, arrays, "f")})
    code = tvm.compile(module, target=machine.tvm(), tir_pipeline=TIR_PIPELINE).mod.inspect_source("s")
    assert "vfmadd" in code and "gather" not in code


def test_fallback_runs_scalar_code() -> None:
    target, w = target_or_skip("x86-64-v2"), doped("hybrid", 0.1)
    plan = schedules.choose_lstm(*w, reverse=True, target=replace(target, name="unknown"))
    assert plan.config.lanes == 1 and plan.rejected
    check_lstm(w, plan, target, SHAPES)


@pytest.mark.parametrize("format", ["csr", "sell16", "perm8", "block4"])
def test_stripes_of_columns(format: str) -> None:
    """S in two and in more stripes than columns of one kind hold: an empty stripe adds nothing."""
    target, (w_ih, w_hh) = target_or_skip("x86-64-v3"), doped("kronecker", 0.25)
    S = w_hh.S.toarray()
    S[:, : S.shape[1] // 3] = 0
    w = (w_ih, structures.Doped(w_hh.base, sp.csr_array(S)))
    plan = schedules.choose_lstm(*w, reverse=False, target=target, batch=8, force={"format": format})
    parts = {"input": replace(plan.input, stripes=2), "recurrent": replace(plan.recurrent, stripes=3)}
    plan = replace(plan, **parts)  # type: ignore[arg-type]
    assert LstmPlan.from_json(plan.to_json()) == plan
    check_lstm(w, plan, target, [(3, 1), (35, 1), (2, 8)])


def test_order_of_the_kronecker_product() -> None:
    """Both orders are the same product; shapes in which each of them is the cheaper one, wider than a register tile."""
    target, rng = target_or_skip("x86-64-v4"), np.random.default_rng(3)
    hidden = 30
    for shape_b, shape_c, order in (((10, 15), (12, 2), "left"), ((60, 3), (2, 10), "right")):
        factors = [(rng.standard_normal(s) * 0.3).astype("float32") for s in (shape_b, shape_c)]
        w = (structures.Kronecker(*factors), structures.Kronecker(*factors))
        plan = schedules.choose_lstm(*w, reverse=False, target=target)
        assert plan.input.part.order == order and plan.hidden == hidden
        check_lstm(w, plan, target, [(5, 1), (2, 19)])


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("columns_of_c", [1, 2, 4])
def test_a_factor_of_few_rows(columns_of_c: int, target: str) -> None:
    """Rows of Y that share vectors: of a rank-one product, and of several rows of B; also where threads share it."""
    machine, rng = target_or_skip(target), np.random.default_rng(columns_of_c)
    w_ih, w_hh = (
        structures.Kronecker(*(rng.standard_normal(s).astype("float32") for s in shapes))
        for shapes in (
            ((120 // columns_of_c, 1), (columns_of_c, 30)),
            ((120 // columns_of_c, 3), (columns_of_c, 10)),
        )
    )
    w = (w_ih, w_hh)
    for threads in (1, 2):
        plan = schedules.choose_lstm(
            *w, reverse=False, target=machine, threads=threads, force={"structure": "kept"}
        )
        assert {plan.input.part.order, plan.recurrent.part.order} == {"right"}
        check_lstm(w, plan, machine, [(3, 1), (9, 1), (2, 11)])


def test_empty_s_and_a_wide_layer_of_few_units() -> None:
    target, rng = target_or_skip("x86-64-v4"), np.random.default_rng(4)
    empty = sparse_matrix(rng, 4, 1, 0.0)
    w = (
        structures.Doped(structures.Zero((4, 70_000)), sparse_matrix(rng, 4, 70_000, 0.001)),
        structures.Doped(structures.Zero((4, 1)), empty),
    )
    plan = schedules.choose_lstm(*w, reverse=False, target=target)
    assert plan.recurrent.sparse is None
    check_lstm(w, plan, target, [(2, 1), (1, 17)])


def test_nan_stays_nan() -> None:
    """A poisoned input must not come out as a number: clamps in the activations would hide it."""
    target, w = target_or_skip("x86-64-v4"), doped("kronecker", 0.25)
    plan = schedules.choose_lstm(*w, reverse=False, target=target)
    arrays = lstm.pack(plan, *w, np.zeros(4 * HIDDEN, "float32"))
    zeros = np.zeros((1, HIDDEN), "float32")
    y, _, _ = run_lstm(
        built(plan, arrays, lstm.prim_func, target),
        plan,
        arrays,
        np.full((1, 1, INPUTS), np.nan, "float32"),
        zeros,
        zeros,
    )
    assert np.isnan(y).all()
