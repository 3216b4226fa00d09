"""The space of candidates: all of them are schedules that compute the layer, and the predicted choice is among them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.conftest import check_lstm
from tests.tuning.making import tasks
from tvm_doping import targets
from tvm_doping.kernels import LstmPlan
from tvm_doping.schedules.recorded import apply
from tvm_doping.tuning.space import Space, space_of, start

TARGET = targets.resolve("auto")


def spaces() -> list[Space]:
    given = [*tasks(), *tasks(batch=20), *tasks(precision="fp16"), *tasks(threads=2)]
    return [*(space_of(task, TARGET) for task in given), *arm_spaces()]


def arm_spaces() -> list[Space]:
    machine = targets.resolve("cortex-a72")
    return [space_of(task, machine) for task in tasks(target="cortex-a72")]


def test_layers_that_are_alike_are_one_task() -> None:
    assert sorted(task.names for task in tasks()) == [("output",), ("rnn.l0", "rnn.l1")]
    assert {task.operation for task in tasks()} == {"lstm", "linear"}


def test_for_tiles_of_two_vectors_of_steps_the_predicted_choice_comes_back_whole() -> None:
    for space in arm_spaces():
        chosen = start(space)
        decisions = space.decisions(chosen)
        assert chosen.numbers.steps == 2 * chosen.numbers.lanes
        assert decisions is not None and space.choice(decisions) == chosen


def test_the_predicted_choice_is_among_the_candidates() -> None:
    for space in spaces():
        chosen = start(space)
        decisions = space.decisions(chosen)
        if (
            decisions is None
        ):  # sell16 with windows for threads, or a width that none of the ways was proposed at
            assert space.task.threads > 1
            continue
        again = space.choice(decisions)
        assert again.ways == chosen.ways
        names = ("lanes", "registers", "tile", "steps", "shared")
        assert all(getattr(again.numbers, n) == getattr(chosen.numbers, n) for n in names)


@given(st.data())
def test_every_combination_is_a_schedule_with_features(data: Any) -> None:
    space = data.draw(st.sampled_from(spaces()))
    draws = [data.draw(st.integers(0, len(axis) - 1)) for axis in space.axes.values()]
    choice = space.choice(draws)
    features = space.features(choice)
    assert features.shape == space.features(start(space)).shape and np.isfinite(features).all()
    decisions = space.decisions(choice)
    assert decisions is not None and space.choice(decisions) == choice
    plan: Any = apply(space.task.plan, space.task.layers, choice)
    assert type(plan).from_json(plan.to_json()) == plan


@settings(max_examples=4)
@given(st.data())
def test_candidates_compute_the_layer(data: Any) -> None:
    space = next(s for s in spaces() if s.task.operation == "lstm" and s.task.batch == 20)
    choice = space.choice([data.draw(st.integers(0, len(axis) - 1)) for axis in space.axes.values()])
    predicted = space.task.plan
    assert isinstance(predicted, LstmPlan)
    plan = apply(predicted, space.task.layers, choice)
    w = (space.task.weights["input"], space.task.weights["recurrent"])
    check_lstm(w, replace(plan, reverse=False), TARGET, [(1, 1), (35, 1), (2, 20), (2, 37)])


def test_more_ways_than_the_schedules_propose() -> None:
    (space,) = (s for s in (space_of(t, TARGET) for t in tasks()) if s.task.operation == "lstm")
    found = {(way.format, *way.params.values()) for way in space.axes["input.way"]}
    assert {("csr", 1), ("csr", 8), ("dense",)} <= found and space.size > 1000


@pytest.mark.parametrize("batch", [1, 20])
def test_tiles_are_varied_for_batches_alone(batch: int) -> None:
    for space in (space_of(task, TARGET) for task in tasks(batch=batch)):
        assert (len(space.axes["tile"]) > 1) == (batch > 1)
