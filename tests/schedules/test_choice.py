"""What the schedules choose, what they refuse, and that the reasons are said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse as sp

from tvm_doping import schedules, structures, targets
from tvm_doping.errors import ScheduleError
from tvm_doping.kernels import LinearPlan, LstmPlan
from tvm_doping.schedules import arm, x86
from tvm_doping.sparsity.values import Precision


def doped(m: int, n: int, density: float, block: int = 1) -> structures.Doped:
    rng = np.random.default_rng(0)
    mask = np.repeat(rng.random((m // block, n)) < density, block, axis=0)
    return structures.Doped(
        structures.Zero((m, n)), sp.csr_array((mask * rng.standard_normal((m, n))).astype("float32"))
    )


def formats(target: str, density: float, block: int = 1, size: int = 640) -> set[str | None]:
    w = doped(4 * size, size, density, block)
    plan = schedules.choose_lstm(w, w, reverse=False, target=targets.resolve(target))
    assert plan.reason
    return {plan.input.sparse, plan.recurrent.sparse}


def test_blocks_are_recognised() -> None:
    for target in ("x86-64-v2", "x86-64-v3", "x86-64-v4"):
        assert formats(target, 0.05, block=16) == {"block16"}


def test_unstructured_s_is_looked_up_in_registers_with_avx512_only() -> None:
    assert formats("x86-64-v4", 0.05) == {"perm2x32"}
    for target in ("x86-64-v2", "x86-64-v3"):
        assert not formats(target, 0.05) & {"perm32", "perm32_expand", "perm2x32"}


def test_a_dense_enough_s_is_looked_up_with_avx2() -> None:
    """Below, a slot holds too few nonzeros to be faster than a gather of them; so it does for a batch, where padding costs."""
    assert formats("x86-64-v3", 0.1) == formats("x86-64-v3", 0.2) == {"perm8"}
    assert formats("x86-64-v3", 0.03) == {"sell16"} and "perm8" not in formats("x86-64-v2", 0.2)
    w, target = doped(2560, 640, 0.1), targets.resolve("x86-64-v3")
    plan = schedules.choose_lstm(w, w, reverse=False, target=target, batch=8)
    assert {plan.input.sparse, plan.recurrent.sparse} <= {"csr", "sell16"}


def test_long_rows_of_a_wide_tile_are_not_read_sixteen_at_a_time() -> None:
    """Two vectors of streams leave no room in the L1 for a SELL group of a dense S, whose rows would fetch it again and again."""
    w, target = doped(2560, 640, 0.2), targets.resolve("x86-64-v3")
    plan = schedules.choose_lstm(w, w, reverse=False, target=target, batch=32)
    assert (plan.input.sparse, plan.recurrent.sparse) == ("csr", "csr")
    w = doped(2560, 640, 0.05)
    plan = schedules.choose_lstm(w, w, reverse=False, target=target, batch=32)
    assert (plan.input.sparse, plan.recurrent.sparse) == ("sell16", "sell16")


def test_steps_known_at_once_are_projected_by_a_format_that_serves_all_lanes() -> None:
    """W_ih runs as tiles of steps, W_hh step by step; streams that run side by side leave no lanes to steps."""
    w, target = doped(2560, 640, 0.1), targets.resolve("x86-64-v3")
    plan = schedules.choose_lstm(w, w, reverse=False, target=target, steps=35)
    assert (plan.input.sparse, plan.recurrent.sparse) == ("sell16", "perm8")
    alone = schedules.choose_lstm(w, w, reverse=False, target=target)
    assert replace(plan.recurrent, alternatives=()) == replace(alone.recurrent, alternatives=())
    assert min(a.cycles for a in plan.input.alternatives) < min(a.cycles for a in alone.input.alternatives)
    one, many = (schedules.choose_lstm(w, w, reverse=False, target=target, batch=8, steps=s) for s in (1, 35))
    assert (one.input, one.config) == (many.input, many.config)
    linear = schedules.choose_linear(w, target=target, batch=1, steps=16)
    assert linear == schedules.choose_linear(w, target=target, batch=16)


def test_a_sequence_reads_its_recurrent_weight_again_and_again() -> None:
    """2.5 MB of perm8 come from an L3 of 8 MB step after step; between single steps all other weights pass through it."""
    w = doped(2600, 650, 0.2)
    target = replace(targets.resolve("x86-64-v3"), l3=8 * targets.MIB)
    one, many = (schedules.choose_lstm(w, w, reverse=False, target=target, steps=s) for s in (1, 35))
    assert (one.input.sparse, one.recurrent.sparse, many.recurrent.sparse) == ("sell16", "sell16", "perm8")

    def cycles(plan: LstmPlan) -> dict[str | None, float]:
        return {a.format: a.cycles for a in plan.recurrent.alternatives}

    assert cycles(many)["perm8"] < 0.5 * cycles(one)["perm8"]


def test_a_batch_prefers_a_format_without_padding() -> None:
    w, target = doped(2560, 640, 0.02), targets.resolve("x86-64-v4")
    plan = schedules.choose_lstm(w, w, reverse=False, target=target, batch=16)
    assert plan.recurrent.sparse in ("csr", "sell16")


@pytest.mark.parametrize(
    ("forced", "target", "why"),
    [
        ("perm32", "x86-64-v3", "avx512f"),
        ("perm8", "x86-64-v2", "avx2"),
        ("nonsense", "x86-64-v3", "no such format"),
    ],
)
def test_refused_with_every_reason(forced: str, target: str, why: str) -> None:
    w = doped(64, 16, 0.2)
    with pytest.raises(ScheduleError, match=why):
        schedules.choose_lstm(w, w, reverse=False, target=targets.resolve(target), force={"format": forced})


def test_perm64_needs_the_instructions_and_leave_to_round() -> None:
    layer = schedules.layer_of(doped(2560, 640, 0.05))
    allowed, rich = replace(layer, precision="bf16"), targets.resolve("x86-64-v4-bf16")

    def chosen(layer: schedules.Layer, target: targets.Target) -> str | None:
        answer = x86.choose(layer, target, frozenset({"perm64"}))
        return answer.format if isinstance(answer, schedules.Candidate) else answer.reason

    for precision in ("exact", "fp16", "int8"):
        assert f"precision {precision}" in str(chosen(replace(layer, precision=precision), rich))
    for name in ("x86-64-v3", "x86-64-v4"):
        assert "avx512" in str(chosen(allowed, targets.resolve(name)))
    assert chosen(allowed, rich) == "perm64"
    free, exact = (x86.choose(one, rich) for one in (allowed, layer))
    assert isinstance(free, schedules.Candidate) and isinstance(exact, schedules.Candidate)
    assert (free.format, free.values, free.config.lanes) == ("perm64", "bf16", 16)
    assert exact.format == "perm2x32" and exact.values == "fp32"
    assert free.cycles < 0.7 * exact.cycles and free.bytes < 0.75 * exact.bytes


def test_plans_survive_json() -> None:
    w = doped(64, 16, 0.2)
    plan = schedules.choose_lstm(w, w, reverse=True, target=targets.resolve("x86-64-v4"))
    assert LstmPlan.from_json(plan.to_json()) == plan
    linear = schedules.choose_linear(w, target=targets.resolve("x86-64-v3"))
    assert type(linear).from_json(linear.to_json()) == linear


def test_rows_of_very_different_lengths_are_grouped() -> None:
    rng = np.random.default_rng(1)
    density = rng.permuted(np.tile(0.3 * np.linspace(0.0, 1.0, 16) ** 2, 160))
    mask = rng.random((2560, 640)) < density[:, None]
    s = sp.csr_array((mask * rng.standard_normal(mask.shape)).astype("float32"))
    skewed = structures.Doped(structures.Zero(s.shape), s)
    even = doped(2560, 640, 0.05)
    plan = schedules.choose_lstm(
        even, skewed, reverse=False, target=targets.resolve("x86-64-v4"), force={"format": "perm32"}
    )
    assert (plan.input.params["grouped"], plan.recurrent.params["grouped"]) == (0, 1)


@pytest.mark.parametrize(
    ("batch", "lanes", "tile"), [(1, 16, 16), (4, 8, 8), (8, 8, 8), (9, 16, 16), (32, 16, 32)]
)
def test_a_batch_that_fits_half_a_vector_takes_half_vectors(batch: int, lanes: int, tile: int) -> None:
    w, target = doped(2560, 640, 0.05), targets.resolve("x86-64-v4")
    plan = schedules.choose_lstm(w, w, reverse=False, target=target, batch=batch)
    assert (plan.config.lanes, plan.config.tile, plan.config.steps) == (lanes, tile, lanes)
    forced = schedules.choose_lstm(
        w, w, reverse=False, target=target, batch=batch, force={"format": "perm32"}
    )
    assert forced.config.lanes == 16  # its look-up takes whole registers


@pytest.mark.parametrize(("batch", "tile"), [(1, 8), (4, 4), (8, 8), (9, 16), (16, 16), (32, 16)])
def test_tiles_of_two_vectors_where_a_batch_fills_more_than_one(batch: int, tile: int) -> None:
    w, target = doped(2560, 640, 0.05), targets.resolve("x86-64-v3")
    plan = schedules.choose_lstm(w, w, reverse=False, target=target, batch=batch)
    lanes = min(8, tile)
    assert (plan.config.lanes, plan.config.tile, plan.config.steps) == (lanes, tile, lanes)
    assert {a.tile for a in plan.input.alternatives} == (
        {8, 16} if batch > 8 else {4, 8} if batch == 4 else {8}
    )


def test_all_that_was_weighed_is_kept_fastest_first() -> None:
    w = doped(2560, 640, 0.05)
    plan = schedules.choose_lstm(w, w, reverse=False, target=targets.resolve("x86-64-v3"), batch=8)
    for each in (plan.input, plan.recurrent):
        weighed = [other.format for other in each.alternatives]
        assert {"csr", "sell16", "perm8", "block4", "block8", "block16", "dense"} == set(weighed)
        assert each.sparse in weighed and all(other.reason for other in each.alternatives)
        cycles = [other.cycles for other in each.alternatives]
        assert cycles == sorted(cycles)


def test_dense_where_it_is_faster_unless_the_structure_is_to_be_kept() -> None:
    target, small = targets.resolve("x86-64-v3"), doped(256, 64, 0.3)
    plan = schedules.choose_linear(small, target=target)
    assert (plan.product.format, plan.product.part.kind, plan.product.sparse) == ("dense", "dense", None)
    assert plan.product.alternatives[0].format == "dense" and "multiplied out" in plan.reason
    kept = schedules.choose_linear(small, target=target, force={"structure": "kept"})
    assert kept.product.sparse is not None and kept.product.part.kind == "zero"
    large = schedules.choose_linear(doped(2560, 640, 0.03), target=target)
    assert large.product.sparse is not None


def test_structure_alone_is_weighed_against_dense() -> None:
    def kronecker(*shapes: tuple[int, int]) -> structures.Kronecker:
        return structures.Kronecker(*(np.ones(shape, "float32") for shape in shapes))

    target = targets.resolve("x86-64-v3")
    cheap = schedules.choose_linear(kronecker((20, 130), (130, 10)), target=target).product
    assert cheap.format == "none" and {a.format for a in cheap.alternatives} == {None, "dense"}
    tiny = schedules.choose_linear(kronecker((1, 1), (64, 64)), target=target).product
    assert tiny.format == "dense"
    forced = schedules.choose_linear(kronecker((1, 1), (64, 64)), target=target, force={"format": "csr"})
    assert forced.product.format == "none"  # a format is that of S; the structure stays


def test_a_dense_weight_has_one_way_to_run() -> None:
    w = structures.Dense(np.ones((64, 16), "float32"))
    (only,) = schedules.choose_linear(w, target=targets.resolve("x86-64-v3")).product.alternatives
    assert (only.format, only.bytes) == ("dense", 4096) and only.cycles > 0


@pytest.mark.parametrize(
    "target", ["cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1", "neoverse-v1", "apple-m1"]
)
def test_arm_chooses_by_core_and_says_why(target: str) -> None:
    assert formats(target, 0.05, block=8) == {"block8"} and formats(target, 0.03) == {"sell16"}
    w, machine = doped(2560, 640, 0.05), targets.resolve(target)
    plan = schedules.choose_lstm(w, w, reverse=False, target=machine, batch=16)
    assert plan.config.gather == ("sve" if target == "neoverse-v1" else "lanes")
    assert (plan.config.lanes, plan.config.registers, plan.config.steps) == (4, 32, 8)
    assert {other.tile for other in plan.input.alternatives} == {4, 8, 16}
    assert {other.format for other in plan.input.alternatives} == {
        "csr",
        "sell16",
        "block4",
        "block8",
        "block16",
        "dense",
    }
    with pytest.raises(ScheduleError, match="no such format on arm"):
        schedules.choose_lstm(w, w, reverse=False, target=machine, force={"format": "perm8"})


def test_arm_stores_fp16_wherever_it_may() -> None:
    layer = replace(schedules.layer_of(doped(2560, 640, 0.05)), precision="fp16")
    answer = arm.choose(layer, targets.resolve("cortex-a72"))
    assert isinstance(answer, schedules.Candidate) and answer.format == "sell16"


# What a core has for a precision; the best of several.
DOTS = [
    ("cortex-a53", "fp16", ""),
    ("cortex-a72", "int8", ""),
    ("cortex-a76", "fp16", "fmla"),
    ("cortex-a76", "bf16", ""),
    ("neoverse-n1", "int8", "sdot"),
    ("neoverse-v1", "bf16", "bfdot"),
    ("neoverse-v1", "int8", "smmla"),
    ("neoverse-v1", "fp16", "fmlal"),
    ("apple-m1", "fp16", "fmlal"),
    ("apple-m1", "int8", "sdot"),
]


@pytest.mark.parametrize(("target", "precision", "dot"), DOTS)
def test_arm_multiplies_narrow_values_as_they_are_where_the_core_can(
    target: str, precision: Precision, dot: str
) -> None:
    layer = schedules.layer_of(structures.Dense(np.ones((512, 64), "float32")))
    machine = targets.resolve(target)
    exact, narrow = (arm.choose(one, machine) for one in (layer, replace(layer, precision=precision)))
    assert isinstance(exact, schedules.Candidate) and isinstance(narrow, schedules.Candidate)
    assert exact.dot == "" and (narrow.dot, narrow.values) == (dot, precision)
    assert {other.dot for other in narrow.alternatives} == {"", dot}
    if not dot:
        assert f"{target} has no product of {precision}" in narrow.reason
        return
    assert f"{precision} values and inputs, by {dot}" in narrow.reason
    assert narrow.cycles < 0.8 * exact.cycles


def test_a_weight_that_is_read_from_memory_keeps_its_inputs() -> None:
    """Where reading takes longest, rounding the inputs would save nothing."""
    layer = schedules.layer_of(structures.Dense(np.ones((20000, 640), "float32")))
    answer = arm.choose(replace(layer, precision="bf16"), targets.resolve("neoverse-v1"))
    assert isinstance(answer, schedules.Candidate)
    assert (answer.values, answer.dot) == ("bf16", "") and "bound by reading" in answer.reason


def test_integer_sums_that_might_not_fit_are_not_made() -> None:
    wide = schedules.layer_of(structures.Dense(np.ones((8, 2**17 + 1), "float32")), batch=16)
    answer = arm.choose(replace(wide, precision="int8"), targets.resolve("neoverse-v1"))
    assert isinstance(answer, schedules.Candidate) and answer.dot == ""


def test_blocks_of_bf16_and_fp16_by_dot_products() -> None:
    w, machine = doped(2560, 640, 0.05, 16), targets.resolve("neoverse-v1")
    wanted: dict[Precision, str] = {"bf16": "bfdot", "fp16": "fmlal", "int8": ""}
    for precision, dot in wanted.items():
        plan = schedules.choose_linear(w, target=machine, precision=precision)
        assert (plan.product.sparse, plan.product.dot) == ("block16", dot)
        assert LinearPlan.from_json(plan.to_json()) == plan
