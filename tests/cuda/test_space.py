"""The candidates of a GPU: within its limits, each with a reason, the chosen one predicted best; and records that stand for one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import sparse as sp

from tests.cuda.conftest import SMALL, doped, plan_of
from tests.cuda.test_resources import block_layer, layer, low_rank_layer, shared_memory
from tests.cuda.test_schedule import SM90, weight
from tests.records.making import DEVICE
from tvm_doping import schedules, structures, targets
from tvm_doping.errors import ScheduleError
from tvm_doping.kernels.cuda.lstm import cut_of, pack, prim_func
from tvm_doping.kernels.cuda.parts import Cut
from tvm_doping.kernels.cuda.room import room
from tvm_doping.kernels.plan import Grid, LstmPlan
from tvm_doping.records import Book, Choice, Record, RecordFile
from tvm_doping.schedules import cuda
from tvm_doping.schedules.grids import THREADS, tight, why_not
from tvm_doping.schedules.recorded import apply, choice_of, illegal, key_of

CASES: dict[str, dict[str, Any]] = {
    "a stream": {},
    "a few": {"batch": 4},
    "a batch in fp16": {"batch": 32, "precision": "fp16"},
    "int8": {"precision": "int8"},
    "steps ahead": {"steps": 35},
}


def layers_of(w: Any, **options: Any) -> dict[str, Any]:
    steps, rest = options.get("steps", 1), {key: value for key, value in options.items() if key != "steps"}
    return {
        "input": schedules.layer_of(w, **rest, steps=steps),
        "recurrent": schedules.layer_of(w, **rest),
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rank", [0, 26])
def test_what_is_chosen_is_the_candidate_predicted_to_be_fastest(rank: int, case: str) -> None:
    w, options = weight(650, rank), CASES[case]
    plan = schedules.choose_lstm(w, w, reverse=False, target=SM90, **options)
    layers = layers_of(w, **options)
    best: dict[Grid, float] = {}
    for name, each in layers.items():
        found = cuda.space(each, SM90, units=650, gates=4, resident=name == "recurrent")
        own: dict[Grid, float] = {}
        for candidate in found:
            grid = candidate.config.grid
            assert grid is not None
            if candidate.format != "mma16":  # which a prediction has to be twice as good for
                own[grid] = min(own.get(grid, np.inf), cuda.predicted(candidate, each))
        best = {grid: best.get(grid, 0.0) + us for grid, us in own.items()}
    assert plan.config.grid is not None
    assert best[plan.config.grid] == min(best.values())
    assert f"{plan.config.grid.parts} blocks" in plan.reason and "predicted" in plan.reason


@pytest.mark.parametrize("precision", ["exact", "fp16"])
def test_candidates_differ_in_all_that_is_decided_and_say_why(precision: Any) -> None:
    each = schedules.layer_of(weight(650, 26), 8, precision)
    found = cuda.space(each, SM90, units=650, gates=4)
    grids = [candidate.config.grid for candidate in found]
    assert {grid.threads for grid in grids if grid} == set(THREADS)
    assert {grid.parts for grid in grids if grid} == {130, 82, 65}
    assert len({grid.tile_from for grid in grids if grid}) == 5
    formats = {(candidate.format, candidate.values) for candidate in found}
    narrow = set() if precision == "exact" else {("sell32", "fp16"), ("mma16", "fp16"), ("dense", "fp16")}
    assert formats == {("sell32", "fp32"), ("dense", "fp32")} | narrow
    assert len({(c.reason, c.values) for c in found}) == len(found), "each has a reason of its own"
    assert all(c.cycles > 0 and c.tile_cycles > 0 and c.bytes > 0 for c in found)
    for candidate in found:
        assert candidate.config.grid is not None
        way = cuda.way_of(candidate, each, Cut(units=650, gates=4, parts=candidate.config.grid.parts))
        assert why_not(candidate.config.grid, [cuda.product_of(each, way)], 650, 4, SM90) is None


def test_a_machine_with_less_shared_memory_has_fewer_candidates_or_none() -> None:
    w = weight(650)
    each = schedules.layer_of(w)
    some = cuda.space(each, replace(SM90, shared=5_000), units=650, gates=4)
    assert 0 < len(some) < len(cuda.space(each, SM90, units=650, gates=4))
    with pytest.raises(ScheduleError, match=r"2000 bytes of shared memory a block; got no grid"):
        schedules.choose_lstm(w, w, reverse=False, target=replace(SM90, shared=2_000))


def test_limits_of_a_grid_are_told() -> None:
    legal = schedules.choose_lstm(*doped("kronecker", 0.2), reverse=False, target=SMALL)
    grid = legal.config.grid
    assert grid is not None

    def said(**changes: Any) -> str:
        config = replace(legal.config, grid=replace(grid, **changes))
        return illegal(replace(legal, config=config), SMALL) or ""

    assert said() == ""
    assert "wait for each other, of which 3 run at once" in said(parts=legal.hidden)
    assert "1024 threads of at least 80 registers" in said(threads=1024)
    assert "bytes of shared memory a block" in (illegal(legal, replace(SMALL, shared=100)) or "")
    assert "rows fill" in (why_not(replace(grid, parts=12), [], 13, 1, SMALL) or "")


@pytest.mark.parametrize("threads", [64, 512, 768])
@pytest.mark.parametrize(
    ("of", "hidden"), [(layer, 650), (layer, 1500), (low_rank_layer, 650), (block_layer, 650)]
)
def test_kernels_take_no_more_shared_memory_than_was_counted(of: Any, hidden: int, threads: int) -> None:
    """With none left to stage weights in; the largest of them takes all that was counted, but for rounding."""
    grid = Grid(parts=tight(hidden, 132), threads=threads, tile_from=8, shared=0, registers=80)
    w = of(hidden, 0.04)
    plan = plan_of(w, values="bf16", grid=grid, format="mma16" if of is block_layer else "sell32")
    asked = max(shared_memory(prim_func(plan, pack(plan, w[0], w[1], np.zeros(4 * hidden, "float32")), "f")))
    counted = room([plan.input, plan.recurrent], cut_of(plan), threads)
    assert asked <= counted <= 1.5 * asked


def book(plan: LstmPlan, layers: dict[str, Any], **changes: Any) -> Book:
    """Records of one: that plan's choice with other numbers of its grid."""
    choice = choice_of(plan)
    assert choice.numbers.grid is not None
    grid = choice.numbers.grid.model_copy(update=changes)
    choice = Choice(ways=choice.ways, numbers=choice.numbers.model_copy(update={"grid": grid}))
    made = Record(
        key=key_of(layers, 1), choice=choice, us={1: 5.0}, heuristic_us={1: 6.0}, trials=9, created="now"
    )
    device = DEVICE.model_copy(
        update={"target": "cuda-sm90", "cpu": "NVIDIA H200", "l1": SM90.l1, "l2": SM90.l2, "l3": SM90.l3}
    )
    return Book((RecordFile(device=device, operation="lstm", records=(made,)),))


def test_a_record_of_a_gpu_is_taken_and_applied_again() -> None:
    w = weight(650, 26)
    predicted = schedules.choose_lstm(w, w, reverse=False, target=SM90)
    layers = layers_of(w)
    assert apply(predicted, layers, choice_of(predicted)).config == predicted.config
    known = book(predicted, layers, parts=82, threads=256, tile_from=4)
    plan = schedules.choose_lstm(w, w, reverse=False, target=SM90, records=known)
    assert plan.config.grid == Grid(parts=82, threads=256, tile_from=4, shared=SM90.shared, registers=256)
    assert plan.record.startswith("tuned: 5 us at T = 1 (predicted choice 6), best of 9 on NVIDIA H200")
    assert "82 blocks of 256 threads, 32 streams side by side from 4 on" in plan.reason
    assert type(plan).from_json(plan.to_json()) == plan
    forced = schedules.choose_lstm(
        w, w, reverse=False, target=SM90, records=known, force={"structure": "kept"}
    )
    assert not forced.record
    assert not schedules.choose_lstm(
        w, w, reverse=False, target=targets.TARGETS["cuda-sm80"], records=known
    ).record


def test_a_record_serves_a_layer_nearby_where_its_numbers_stay_legal() -> None:
    w, nearby = weight(650), weight(660)
    predicted = schedules.choose_lstm(w, w, reverse=False, target=SM90)
    options: dict[str, Any] = {"reverse": False, "target": SM90}
    plan = schedules.choose_lstm(nearby, nearby, **options, records=book(predicted, layers_of(w), parts=130))
    assert "nearby" in plan.record and plan.config.grid is not None
    assert plan.config.grid.parts == tight(660, 130) == 110, "six units each: twenty blocks would be empty"
    # a machine of the same name with fewer multiprocessors: more blocks than run at once would wait for ever
    fewer = {**options, "target": replace(SM90, multiprocessors=100)}
    many = schedules.choose_lstm(w, w, **fewer, records=book(predicted, layers_of(w), parts=130))
    assert not many.record and many.config.grid is not None and many.config.grid.parts <= 100
    some = schedules.choose_lstm(w, w, **fewer, records=book(predicted, layers_of(w), parts=65))
    assert some.record and some.config.grid is not None and some.config.grid.parts == 65


def test_a_linear_layer_has_whole_warps_of_rows_and_records() -> None:
    rng = np.random.default_rng(0)
    S = sp.random_array((10_000, 650), density=0.03, dtype=np.float32, rng=rng, format="csr")
    w = structures.Doped(structures.Zero((10_000, 650)), sp.csr_array(S))
    plan = schedules.choose_linear(w, target=SM90)
    assert plan.config.grid is not None and -(-10_000 // plan.config.grid.parts) % 32 == 0
    choice = choice_of(plan)
    again = apply(plan, {"product": schedules.layer_of(w)}, choice)
    assert choice_of(again) == choice and again.config == plan.config
