"""Candidates measured over the emulated driver, as a worker measures them on a GPU; the events there tell no times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from tests.cuda.conftest import SMALL
from tests.cuda.emulation import Driver
from tests.tuning.making import small
from tvm_doping.errors import DopingError
from tvm_doping.kernels import LstmPlan, lstm
from tvm_doping.passes import Context
from tvm_doping.records import Way
from tvm_doping.schedules.recorded import apply
from tvm_doping.tuning import measure as measuring
from tvm_doping.tuning.gpu import elapsed
from tvm_doping.tuning.gpu_space import gpu_space_of
from tvm_doping.tuning.measure import Job, measure
from tvm_doping.tuning.tasks import Task, tasks_of

JOB = Job(steps=(1, 35), batch=1, threads=1)


@pytest.fixture(scope="module")
def tasks(with_gpu: Driver) -> dict[str, Task]:
    """An LSTM's and a linear layer's, for three multiprocessors and blocks of few threads."""
    return {task.operation: task for task in tasks_of(small(16), Context(target=SMALL, precision="fp16"))}


class Clock:
    """CUDA's events over a clock that launches move on."""

    def __init__(self) -> None:
        self.now, self.at, self.live = 0.0, dict[int, float](), set[int]()

    def event(self, *, timed: bool = False) -> int:
        assert timed
        self.live.add(made := len(self.at) + len(self.live) + 1)
        return made

    def record(self, event: int, stream: int) -> None:
        assert stream == 7
        self.at[event] = self.now

    def elapsed(self, start: int, end: int) -> float:
        return self.at[end] - self.at[start]

    def free(self, *, event: int = 0) -> None:
        self.live.remove(event)


def test_events_stand_around_all_launches_and_are_given_back() -> None:
    clock = Clock()

    def launch() -> None:
        clock.now += 2.5

    assert elapsed(clock, 7, launch, 4) == 10.0 and not clock.live

    def fails() -> None:
        raise RuntimeError("the GPU")

    with pytest.raises(RuntimeError, match="the GPU"):
        elapsed(clock, 7, fails, 4)
    assert not clock.live


@pytest.mark.parametrize("operation", ["lstm", "linear"])
def test_candidates_are_built_compared_and_timed_as_a_bundle_has_them(
    with_gpu: Driver, tasks: dict[str, Task], operation: str
) -> None:
    task = tasks[operation]
    space, plan = gpu_space_of(task, SMALL), cast(LstmPlan, task.plan)
    plans = []
    for format in ("sell32", "mma16", "dense"):
        decisions = [len(options) - 1 for options in space.axes.values()]
        for at, options in enumerate(space.axes.values()):
            if isinstance(options[0], Way):
                named = [(way.format, way.values) for way in options]
                decisions[at] = named.index((format, "fp16"))
        plans.append(apply(plan, task.layers, space.choice(decisions)))
    with_gpu.log()
    found = measure(plans, task.weights, SMALL, replace(JOB, steps=(1, 4)), rounds=2)
    # the emulated GPU takes a millisecond for any number of calls
    assert [sorted(times) for times in found] == [[1, 4]] * 3
    assert all(us > 0 and len(times) == 2 for own in found for times in own.values() for us in times)
    launches = with_gpu.log()
    assert any("cooperative" in line for line in launches) == (operation == "lstm")


def test_a_wrong_kernel_is_found_in_its_single_step_too(
    tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    reference = lstm.reference

    def off_at_one(plan: Any, arrays: Any, x: Any, *state: Any) -> Any:
        checked.append(len(x))
        y, h, c = reference(plan, arrays, x, *state)
        return (y + (0.01 if len(x) == 1 else 0.0), h, c)

    monkeypatch.setattr(lstm, "reference", off_at_one)
    with pytest.raises(DopingError, match=r"NumPy's results; got 0\.01 off"):
        measure([tasks["lstm"].plan], tasks["lstm"].weights, SMALL, JOB, rounds=0)
    assert checked == [1]


def test_a_candidate_beyond_the_limits_is_refused_before_anything_is_built(tasks: dict[str, Task]) -> None:
    with pytest.raises(DopingError, match=r"the limits of cuda-sm90; got .* bytes of shared memory a block"):
        measure([tasks["lstm"].plan], tasks["lstm"].weights, replace(SMALL, shared=64), JOB, rounds=0)


def test_a_step_is_timed_as_its_graph_is_replayed_and_a_sequence_call_by_call(
    with_gpu: Driver, tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[int] = []

    def pretended(library: Any, stream: int, launch: Any, times: int) -> float:
        launched.append(times)
        for _ in range(times):
            launch()
        return 160.0

    monkeypatch.setattr("tvm_doping.tuning.gpu.elapsed", pretended)
    monkeypatch.setattr(measuring, "_SAMPLE_US", 640.0)
    with_gpu.log()
    job = replace(JOB, steps=(1, 2))
    (found,) = measure([tasks["lstm"].plan], tasks["lstm"].weights, SMALL, job, rounds=1)
    # one graph has 16 steps: 10 us each at first, so that 64 fill a sample; of a sequence, 160 us, four do
    assert launched == [1, 1, 4] * 2
    assert found == {1: [160 / 64], 2: [160 / 4]}
    lines = with_gpu.log()
    assert lines.count("graph") == 6 and sum("captured" in line for line in lines) == 16
