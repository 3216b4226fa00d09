"""Tuning for a GPU without one: the space of candidates, and whole jobs with stand-in measurements."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tvm_doping
from tests.cuda.conftest import SMALL
from tests.tuning.making import small
from tvm_doping import gpu, schedules, tuning
from tvm_doping.errors import InvalidInput, TargetError
from tvm_doping.passes import Context
from tvm_doping.records import Record, read
from tvm_doping.schedules.recorded import apply, choice_of
from tvm_doping.tuning import tune
from tvm_doping.tuning.gpu_space import GpuSpace, gpu_space_of
from tvm_doping.tuning.tasks import Task, tasks_of


@lru_cache
def tasks(batch: int = 1, precision: Any = "exact") -> tuple[Task, ...]:
    """An LSTM's and a linear layer's, for three multiprocessors."""
    return tuple(tasks_of(small(), Context(target=SMALL, batch=batch, precision=precision)))


def spaces() -> list[GpuSpace]:
    given = [*tasks(), *tasks(batch=8), *tasks(batch=32, precision="fp16")]
    return [gpu_space_of(task, SMALL) for task in given]


def test_the_predicted_choice_is_a_candidate_and_predicted_best_of_those_without_rounding() -> None:
    for space in spaces():
        chosen = choice_of(space.task.plan)
        decisions = space.decisions(chosen)
        assert decisions is not None and space.choice(decisions) == chosen
        assert 10 < space.size < 5000
        rng = np.random.default_rng(0)
        for _ in range(50):
            other = space.choice([int(rng.integers(len(axis))) for axis in space.axes.values()])
            rounds = any(way.format == "mma16" for way in other.ways.values())
            assert rounds or space.predicted(chosen) <= space.predicted(other) * (1 + 1e-9)


@given(st.data())
def test_every_combination_is_a_plan_with_features(data: Any) -> None:
    space = data.draw(st.sampled_from(spaces()))
    draws = [data.draw(st.integers(0, len(axis) - 1)) for axis in space.axes.values()]
    choice = space.choice(draws)
    features = space.features(choice)
    assert features.shape == space.features(choice_of(space.task.plan)).shape and np.isfinite(features).all()
    decisions = space.decisions(choice)
    assert decisions is not None and space.choice(decisions) == choice
    plan: Any = apply(space.task.plan, space.task.layers, choice)
    assert type(plan).from_json(plan.to_json()) == plan and plan.config.grid.shared == SMALL.shared


def test_streams_run_side_by_side_or_not() -> None:
    for batch, wanted in ((1, 1), (8, 2)):
        for space in (gpu_space_of(task, SMALL) for task in tasks(batch=batch)):
            sides = [number <= batch for number in space.axes["tile_from"]]
            assert len(sides) == len(set(sides)) == wanted


class Fake:
    """In place of `Workers`: every plan takes a time that follows from its text; some fail."""

    asked: list[list[Any]] = []  # noqa: RUF012 (emptied by each test)
    fails: Callable[[Any], bool] = staticmethod(lambda plan: False)

    def __init__(self, count: int) -> None:
        pass

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, requests: Mapping[Hashable, dict[str, Any]]) -> Iterator[tuple[Hashable, dict[str, Any]]]:
        for name, request in requests.items():
            plans = [json.loads(plan) for plan in request["plans"]]
            self.asked.append(plans)
            if len(plans) == 2 and self.fails(plans[1]):
                yield name, {"error": "crashed: SIGSEGV", "kind": "crash", "seconds": 0.1}
                continue
            us = [20.0 if plan == plans[0] else self.time(plan) for plan in plans]
            yield name, {"us": [{"1": [t] * 3, "35": [9 * t] * 3} for t in us], "seconds": 0.1}

    @staticmethod
    def time(plan: Any) -> float:
        grid = plan["config"]["grid"]
        return 10.0 + abs(grid["threads"] - 256) / 64 + grid["parts"] / 10


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """A machine with a GPU, an nvcc, and workers that measure nothing."""
    monkeypatch.setattr(gpu, "compute_capability", lambda: (9, 0))
    monkeypatch.setattr(tuning, "gpu_name", lambda: "NVIDIA Pretended")
    monkeypatch.setattr(tuning, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(tuning, "Workers", Fake)
    monkeypatch.setattr(Fake, "asked", [])
    return Fake


def test_a_job_searches_records_and_goes_on(pretended: type[Fake], tmp_path: Path) -> None:
    said: list[str] = []
    options: dict[str, Any] = {"log": tmp_path / "log", "records": tmp_path / "r", "echo": said.append}
    options |= {"jobs": 1, "only": "rnn"}
    (path,) = tune(small(), SMALL, trials=20, **options)
    assert path == tmp_path / "r" / "cuda-sm90-nvidia-pretended" / "lstm.json"
    file = read(path)
    (record,) = file.records
    assert isinstance(record, Record) and record.trials == 20 and file.device.cores == 3
    assert record.choice.numbers.grid is not None and record.choice.numbers.grid.threads == 256, "the fastest"
    assert record.gain > 1 and "20 of 20 candidates" in "".join(said)
    logged = [json.loads(line) for line in (tmp_path / "log" / "log.jsonl").read_text().splitlines()]
    assert len([line for line in logged if "choice" in line]) == 20
    asked = len(pretended.asked)
    tune(small(), SMALL, trials=24, resume=True, **options)
    assert len(pretended.asked) == asked + 4 + 1, "what is in the log is not measured again"
    # and compiling takes what was found
    task = next(task for task in tasks() if task.operation == "lstm")
    w: list[Any] = [task.weights[name] for name in ("input", "recurrent")]
    book = tvm_doping.records.Book.of(tmp_path / "r")
    plan = schedules.choose_lstm(*w, reverse=False, target=SMALL, records=book)
    assert "on NVIDIA Pretended" in plan.record and plan.config.grid is not None
    assert plan.config.grid.threads == 256


def test_candidates_that_fail_are_recorded_and_skipped(
    pretended: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        pretended, "fails", staticmethod(lambda plan: plan["config"]["grid"]["threads"] == 256)
    )
    options: dict[str, Any] = {"log": tmp_path / "log", "records": tmp_path / "r", "echo": lambda text: None}
    (path,) = tune(small(), SMALL, trials=16, jobs=1, only="rnn", **options)
    logged = [json.loads(line) for line in (tmp_path / "log" / "log.jsonl").read_text().splitlines()]
    assert any(line.get("kind") == "crash" for line in logged)
    (record,) = read(path).records
    assert isinstance(record, Record) and record.choice.numbers.grid is not None
    assert record.choice.numbers.grid.threads != 256


def test_what_a_job_for_a_gpu_needs_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "compute_capability", lambda: "no driver of NVIDIA's (libcuda.so.1)")
    options: dict[str, Any] = {"log": tmp_path / "log"}
    with pytest.raises(TargetError, match=r"nvidia-sm_90 to measure on; got no driver of NVIDIA's"):
        tune(small(), "cuda-sm90", **options)
    monkeypatch.setattr(gpu, "compute_capability", lambda: (8, 0))
    with pytest.raises(TargetError, match=r"to measure on; got a GPU of compute capability 8\.0"):
        tune(small(), "cuda-sm90", **options)
    monkeypatch.setattr(gpu, "compute_capability", lambda: (9, 0))
    with pytest.raises(InvalidInput, match="tracker"):
        tune(small(), "cuda-sm90", **options, tracker="127.0.0.1:9190", key="h200")
    with pytest.raises(InvalidInput, match="threads"):
        tune(small(), "cuda-sm90", **options, threads=2)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "find_nvcc", lambda: "nvcc")
        patch.setattr("tvm.support.cc.get_cc", lambda: None)
        with pytest.raises(TargetError, match=r"C\+\+ compiler that links"):
            tune(small(), "cuda-sm90", **options)

    def none() -> str:
        raise TargetError("the compiler of a CUDA target", "nvcc", "none", "Install it.")

    monkeypatch.setattr(tuning, "find_nvcc", none)
    with pytest.raises(TargetError, match="nvcc"):
        tune(small(), "cuda-sm90", **options)
    assert not (tmp_path / "log").exists()
