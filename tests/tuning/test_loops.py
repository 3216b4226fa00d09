"""Dense functions that no kernel of ours replaces: MetaSchedule's rules find schedules, and compile uses those that were kept."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tvm_doping
from tests.freestanding.conftest import make
from tvm_doping import targets
from tvm_doping.build_c import compile_c
from tvm_doping.errors import RecordError
from tvm_doping.kernels import traced
from tvm_doping.passes import Context
from tvm_doping.records import Book, LoopFile, LoopRecord, read, save
from tvm_doping.tuning import device_of, tune
from tvm_doping.tuning.log import Log
from tvm_doping.tuning.loops import LoopTask, LoopTrials, loop_tasks, said
from tvm_doping.tuning.measure import Job
from tvm_doping.tuning.rules import Rules
from tvm_doping.tuning.tasks import imported_of
from tvm_doping.tuning.trials import Budget

TARGET = targets.resolve("auto")


class Convolved(nn.Module):
    """A convolution over time before an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 24, 3, padding=1)
        self.rnn = nn.LSTM(24, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.rnn(torch.relu(self.conv(x)).transpose(1, 2))[0]
        return y


@lru_cache
def model() -> Convolved:
    torch.manual_seed(0)
    return Convolved().eval()


EXAMPLE = (torch.zeros(1, 8, 35),)


@lru_cache
def tasks() -> tuple[LoopTask, ...]:
    return tuple(loop_tasks(imported_of(model(), EXAMPLE), Context(target=TARGET), (1, 35)))


@lru_cache
def trace(T: int) -> list[Any]:
    """The first schedule that the rules propose."""
    (task,) = (task for task in tasks() if task.T == T)
    found: list[Any] = Rules(traced.workload(task.fixed), TARGET.tvm(), strategy="random").ask()[0]
    return found


def record(T: int, **changes: Any) -> LoopRecord:
    (task,) = (task for task in tasks() if task.T == T)
    fields = {"key": task.key, "name": task.name, "shapes": task.shapes, "trace": trace(T), "trials": 8}
    times = {"us": {T: 10.0}, "heuristic_us": {T: 12.0}, "created": "2026-01-01T00:00:00+00:00"}
    return LoopRecord.model_validate({**fields, **times, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path, device_of(TARGET), "loops", [record(1), record(35)])
    return tmp_path


def test_a_task_is_a_function_for_one_number_of_steps() -> None:
    assert [(task.T, task.shapes[0]) for task in tasks()] == [(1, (1, 8, 1)), (35, (1, 8, 35))]
    assert {task.name for task in tasks()} == {"fused_conv1d_add_relu"}
    again = loop_tasks(imported_of(model(), EXAMPLE), Context(target=TARGET), (1, 35))
    assert [task.key for task in again] == [task.key for task in tasks()]


def test_compile_takes_what_was_found_for_its_sizes_and_computes_the_same(folder: Path) -> None:
    bundle = tvm_doping.compile(model(), example=EXAMPLE, records=folder)
    (said, also) = bundle.manifest.records
    assert said.startswith("fused_conv1d_add_relu tuned: 10 us at T = 1 (own loops 12)") and "T = 35" in also
    session = bundle.session()
    for steps, batch in ((1, 1), (35, 1), (7, 1), (35, 2)):
        x = np.random.default_rng(steps).standard_normal((batch, 8, steps)).astype("float32")
        with torch.no_grad():
            expected = model()(torch.from_numpy(x)).numpy()
        session.reset()  # the batch is that of the first call
        np.testing.assert_allclose(session.run(x), expected, atol=1e-5)


@pytest.mark.slow
def test_a_program_in_c_computes_the_same(folder: Path, tmp_path: Path) -> None:
    compile_c(model(), example=EXAMPLE, records=folder, max_steps=35).save(tmp_path / "c")
    assert "as PyTorch gave it" in make(tmp_path / "c", "check")


def test_only_the_size_of_a_trace_runs_as_it_says() -> None:
    task = tasks()[1]
    function = traced.with_traces(
        task.function, [traced.Traced(shapes=t.shapes, trace=trace(t.T)) for t in tasks()]
    )
    assert [traced.shapes_of(one) for one in traced.scheduled(function)] == [t.shapes for t in tasks()]
    assert len(traced.scheduled(traced.fixed(function, {"N": 1, "T": 35}))) == 1
    assert not traced.scheduled(traced.fixed(function, {"N": 2, "T": 35}))
    assert traced.fixed(function, {"N": 1}) is None


def test_a_trace_that_is_not_of_its_loops_is_told() -> None:
    work, wrong = traced.workload(tasks()[1].fixed), json.loads(json.dumps(trace(35)))
    assert "conv1d" in str(traced.replay(work, trace(35)))
    wrong[0][0][2][0] = "nowhere"
    with pytest.raises(RecordError, match="trace"):
        traced.replay(work, wrong)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"trace": [[["UnsafeSetDType", [], [], []]], []]}, "UnsafeSetDType"),
        ({"trace": [[["GetSBlock", []]], []]}, "name, inputs, attributes, outputs"),
        ({"trace": [[], [[3, 1]]]}, "decisions"),
        ({"key": {"hash": "12", "tvm": "0.27.0"}}, "pattern"),
        ({"heuristic_us": {}}, "heuristic"),
    ],
)
def test_a_damaged_record_is_told_with_its_place(folder: Path, damage: dict[str, Any], said: str) -> None:
    (path,) = folder.glob("*/loops.json")
    file = json.loads(path.read_text())
    file["records"][1] |= damage
    path.write_text(json.dumps(file))
    with pytest.raises(RecordError, match=said) as caught:
        read(path)
    assert "records.1" in str(caught.value)


def test_of_two_records_the_faster_is_kept_and_another_tvm_takes_none(folder: Path) -> None:
    (path,) = folder.glob("*/loops.json")
    save(folder, device_of(TARGET), "loops", [record(1, us={1: 9.0}), record(35, us={35: 11.0})])
    file = read(path)
    assert isinstance(file, LoopFile) and [round(r.score, 6) for r in file.records] in ([9, 10], [10, 9])
    book, key = Book.of(folder), tasks()[0].key
    found = book.loops(key.hash, key.tvm, TARGET)
    assert found is not None and found[0].us == {1: 9.0} and found[1] == device_of(TARGET)
    assert book.loops(key.hash, "0.28.0", TARGET) is None
    assert book.loops(key.hash, key.tvm, replace(TARGET, name="x86-64-v2")) is None


class Fake:
    """In place of `Workers`: each trace takes the time of its turn, or fails."""

    def __init__(self, error: str = "") -> None:
        self.error, self.asked = error, 0

    def run(self, requests: Any) -> Any:
        for name, request in requests.items():
            self.asked += 1
            us = [[10.0], *([9.0 + self.asked % 3] for _ in request["plans"][1:])]
            reply = {"error": self.error, "kind": "error"} if self.error else {"us": [{"35": t} for t in us]}
            yield name, {**reply, "seconds": 0.1}


def _trials(folder: Path, workers: Any, trials: int) -> tuple[LoopTrials, list[dict[str, Any]]]:
    log = Log(folder, resume=True)
    job = Job(steps=(1, 35), batch=1, threads=1)
    search = LoopTrials(tasks()[1], TARGET, workers, log, job, timeout=60, echo=lambda line: None)
    search.run(Budget(trials=trials), "random")
    log.close()
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return search, [line for line in lines if "trace" in line]


def test_a_search_by_chance_goes_on_with_other_traces(tmp_path: Path) -> None:
    _, before = _trials(tmp_path, Fake(), 8)
    _, lines = _trials(tmp_path, Fake(), 16)
    assert lines[:8] == before and len({json.dumps(line["trace"]) for line in lines}) == 16


def test_candidates_that_all_fail_are_not_said_to_be_slow(tmp_path: Path) -> None:
    search, lines = _trials(tmp_path, Fake("no compiler"), 8)
    assert len(lines) == 8
    told = said(search.task, None, search.reason)
    assert "no candidate ran (no compiler)" in told and "as fast" not in told


@pytest.mark.slow
def test_a_job_tunes_them_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_doping.tuning.STEPS", (35,))
    told: list[str] = []
    options: dict[str, Any] = {
        "log": tmp_path / "log",
        "records": tmp_path / "r",
        "jobs": 1,
        "only": "conv1d",
    }
    paths = tune(model(), trials=2, example=EXAMPLE, echo=told.append, **options)
    lines = [json.loads(line) for line in (tmp_path / "log" / "log.jsonl").read_text().splitlines()]
    assert [line["T"] for line in lines if "trace" in line] == [35, 35]
    assert not [line for line in lines if "error" in line] and "finalists" in lines[-1]
    assert any("2 of 2 candidates" in text for text in told)
    for path in paths:
        (found,) = read(path).records
        assert path.name == "loops.json" and found.gain > 1 and "us at T = 35" in told[-1]
    assert paths or "no record" in told[-1]
    tune(model(), trials=3, example=EXAMPLE, resume=True, echo=told.append, **options)
    again = [json.loads(line) for line in (tmp_path / "log" / "log.jsonl").read_text().splitlines()]
    assert again[: len(lines)] == lines and len([line for line in again if "trace" in line]) == 3
    assert not [entry for entry in (tmp_path / "log").iterdir() if entry.is_dir()]
