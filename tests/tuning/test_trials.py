"""The trials of a task, with workers that reply at once: what is logged when, what failures do, and when a job ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tuning.making import tasks
from tvm_doping import targets
from tvm_doping.errors import TuningError
from tvm_doping.tuning.log import Log
from tvm_doping.tuning.measure import Job
from tvm_doping.tuning.space import space_of
from tvm_doping.tuning.tasks import Task
from tvm_doping.tuning.trials import Best, Budget, Strategy, Trials

TARGET = targets.resolve("auto")
TASK = next(task for task in tasks() if task.operation == "lstm")
CRASH = {"error": "crashed: SIGSEGV", "kind": "crash", "seconds": 0.1}


def timed(plans: list[str]) -> dict[str, Any]:
    """Every plan takes a time that follows from its text, the predicted one, which is the first, 10 us."""
    us = [10.0 if plan == plans[0] else 5.0 + sum(plan.encode()) % 97 / 10 for plan in plans]
    return {"us": [{"1": [t] * 3, "35": [20 * t] * 3} for t in us], "seconds": 0.1}


class Fake:
    """In place of `Workers`: replies(number of the request, its plans), and what the log held when each was asked for."""

    def __init__(self, log: Log, replies: Callable[[int, list[str]], dict[str, Any]]) -> None:
        self.log, self.replies = log, replies
        self.asked, self.logged = 0, list[int]()

    def run(self, requests: Mapping[Hashable, dict[str, Any]]) -> Iterator[tuple[Hashable, dict[str, Any]]]:
        for name, request in requests.items():
            self.logged.append(len(self.log.path.read_text().splitlines()))
            self.asked += 1
            yield name, self.replies(self.asked, request["plans"])


def job(
    folder: Path,
    budget: Budget,
    replies: Callable[[int, list[str]], dict[str, Any]] = lambda number, plans: timed(plans),
    said: list[str] | None = None,
    strategy: Strategy = "xgboost",
) -> tuple[Best, list[dict[str, Any]], Fake]:
    """The best, the lines of the log that have a candidate, and the workers."""
    log = Log(folder, resume=True)
    workers: Any = Fake(log, replies)
    try:
        echo = (said if said is not None else []).append
        settings = Job(steps=(1, 35), batch=1, threads=1)
        trials = Trials(space_of(TASK, TARGET), TARGET, workers, log, settings, timeout=60, echo=echo)
        best = trials.run(budget, strategy)
    finally:
        log.close()
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    return best, [line for line in lines if "choice" in line], workers


def test_each_candidate_is_on_the_disk_before_the_next_is_asked_for(tmp_path: Path) -> None:
    best, lines, workers = job(tmp_path, Budget(trials=20))
    assert workers.logged == list(range(21))  # the last is the final measurement
    assert len(lines) == best.trials == 20 and [line["trial"] for line in lines] == list(range(20))
    assert best.us[1] <= min(line["us"]["1"] for line in lines) and best.reference_us == {1: 10.0, 35: 200.0}


def test_candidates_that_fail_are_recorded_and_skipped(tmp_path: Path) -> None:
    said: list[str] = []

    def replies(number: int, plans: list[str]) -> dict[str, Any]:
        return CRASH if len(plans) == 2 and number % 3 == 2 else timed(plans)

    best, lines, _ = job(tmp_path, Budget(trials=20), replies, said)
    failed = [line for line in lines if "error" in line]
    assert len(lines) == 20 and len(failed) == 7 and "7 failed" in said[-1]
    assert all(line["kind"] == "crash" and "us" not in line for line in failed)
    assert best.choice.model_dump(mode="json") not in [line["choice"] for line in failed]


def test_a_stopped_job_goes_on_with_what_it_knows(tmp_path: Path) -> None:
    def stopped(number: int, plans: list[str]) -> dict[str, Any]:
        if number == 13:
            raise KeyboardInterrupt
        return timed(plans)

    with pytest.raises(KeyboardInterrupt):
        job(tmp_path, Budget(trials=20), stopped)
    before = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(before) == 12
    best, lines, workers = job(tmp_path, Budget(trials=20))
    assert lines[:12] == before and len(lines) == best.trials == 20
    assert workers.asked == 8 + 1
    assert len({json.dumps(line["choice"]) for line in lines}) == 20


def test_what_a_busy_machine_cannot_tell_apart_is_no_gain(tmp_path: Path) -> None:
    def replies(number: int, plans: list[str]) -> dict[str, Any]:
        reply = timed(plans)
        if (
            len(plans) > 2
        ):  # the final measurement: the predicted choice, which is first and last, is slower than itself
            us = [10.0, *[9.0] * (len(plans) - 2), 10.0 + off]
            reply["us"] = [{"1": [t] * 3, "35": [20 * t] * 3} for t in us]
        return reply

    for off, gains in ((0.5, True), (1.0, False), (-1.0, False)):
        best, _, _ = job(tmp_path / str(off), Budget(trials=4), replies)
        assert (best.us[1] == 9.0) is gains and best.reference_us[1] == 10.0


def test_no_candidate_is_begun_when_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tvm_doping.tuning.trials.time.monotonic", lambda: now[0])
    said: list[str] = []

    def replies(number: int, plans: list[str]) -> dict[str, Any]:
        now[0] += 5.0
        return timed(plans)

    best, lines, _ = job(tmp_path / "all", Budget(trials=10**6, end=60.0), replies, said, "exhaustive")
    # the predicted choice, then rounds of 8 of which the second begins at 45 s
    assert best.trials == len(lines) == 17
    assert " 15 s left" in said[0] and " 0 s left" in said[1]
    # those that come first in the list of all are alike but for the recurrent weight: without being told so, a job searches
    assert len({line["choice"]["ways"]["input"]["format"] for line in lines[1:]}) == 1
    now[0] = 0.0
    _, lines, _ = job(tmp_path / "some", Budget(trials=10**6, end=30.0), replies)
    others = [{**line["choice"], "ways": line["choice"]["ways"]["input"]} for line in lines[1:]]
    assert len({json.dumps(choice) for choice in others}) > 1


def test_another_models_weights_are_not_taken_for_those_of_the_log(tmp_path: Path) -> None:
    log = Log(tmp_path, resume=True)
    options: dict[str, Any] = {"timeout": 60, "echo": print}

    def trials(task: Task, batch: int = 1) -> Trials:
        settings = Job(steps=(1, 35), batch=batch, threads=1)
        workers: Any = None
        return Trials(space_of(task, TARGET), TARGET, workers, log, settings, **options)

    other = replace(TASK, weights={**TASK.weights, "input": TASK.weights["recurrent"]})
    assert other.key == TASK.key
    places = [trials(TASK), trials(other), trials(TASK, 2)]
    assert len({each.id for each in places}) == len({each.weights for each in places}) == 3
    assert trials(TASK).id == places[0].id
    log.close()


def test_what_cannot_go_on_is_told(tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="SIGSEGV"):
        job(tmp_path / "first", Budget(trials=4), lambda number, plans: CRASH)
    with pytest.raises(TuningError, match="Resume"):
        job(tmp_path / "last", Budget(trials=4), lambda n, plans: CRASH if n > 4 else timed(plans))
    best, _, workers = job(tmp_path / "last", Budget(trials=4))
    assert best.trials == 4 and workers.asked == 1  # the final measurement alone


def test_a_finalist_that_fails_now_is_left_out_and_the_others_are_measured(tmp_path: Path) -> None:
    """Two of them crash from the end of the search on, one by itself too, the other beside others alone."""
    best, _, _ = job(tmp_path / "sound", Budget(trials=20))
    alone, beside = set[str](), set[str]()

    def replies(number: int, plans: list[str]) -> dict[str, Any]:
        if number == 21:  # the first final measurement: the fastest two
            alone.add(plans[1])
            beside.add(plans[2])
        broken = alone & set(plans) or (len(plans) > 2 and beside & set(plans) and len(plans) > 3)
        return CRASH if broken else timed(plans)

    found, lines, workers = job(tmp_path / "broken", Budget(trials=20), replies)
    assert found.choice != best.choice and found.us[1] >= best.us[1]
    assert found.us[1] < found.reference_us[1] and found.trials == 20
    crashed = [line["choice"] for line in lines if "error" in line]
    assert crashed == [best.choice.model_dump(mode="json")]
    assert workers.asked > 21


def test_where_no_finalist_runs_again_the_predicted_choice_stays(tmp_path: Path) -> None:
    def replies(number: int, plans: list[str]) -> dict[str, Any]:
        return CRASH if number > 20 and len(set(plans)) > 1 else timed(plans)

    best, lines, _ = job(tmp_path, Budget(trials=20), replies)
    assert best.us == best.reference_us == {1: 10.0, 35: 200.0}
    assert best.choice.model_dump(mode="json") == lines[0]["choice"]
