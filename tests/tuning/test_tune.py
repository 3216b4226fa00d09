"""A tuning job from model to record, and what is left to go on with when it is stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tvm_doping
from tests.tuning.making import small
from tvm_doping.errors import InvalidInput, TargetError, TuningError
from tvm_doping.records import Record, read
from tvm_doping.tuning import STEPS, tune
from tvm_doping.tuning.log import Log


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_job_records_the_fastest_and_compile_uses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVM_DOPING_RECORDS", str(tmp_path / "records"))
    said: list[str] = []
    options: dict[str, Any] = {"log": tmp_path / "log", "jobs": 1, "only": "rnn", "echo": said.append}
    (path,) = tune(small(), trials=5, **options)
    assert path.parent.parent == tmp_path / "records" and path.name == "lstm.json"
    (record,) = read(path).records
    assert (
        isinstance(record, Record)
        and set(record.us) == set(STEPS)
        and record.trials == 5
        and record.gain >= 0.9
    )
    logged = lines(tmp_path / "log")
    measured = [line for line in logged if "choice" in line]
    assert len(measured) == 5 and len({json.dumps(line["choice"]) for line in measured}) == 5
    assert logged[-1]["best"] == record.choice.model_dump(mode="json")
    assert any("5 of 5 candidates" in line for line in said) and "rnn.l0, rnn.l1" in said[-1]
    manifest = tvm_doping.compile(small()).manifest
    (used,) = manifest.records
    assert "tuned:" in used and "best of 5" in used

    # As a job killed while it wrote its eighth line leaves it.
    text = (tmp_path / "log" / "log.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "log" / "log.jsonl").write_text("".join(text[:3]) + text[3][:40])
    with pytest.raises(TuningError, match="--resume"):
        tune(small(), trials=6, **options)
    tune(small(), trials=6, resume=True, **options)
    again = [line for line in lines(tmp_path / "log") if "choice" in line]
    assert again[:3] == measured[:3] and len(again) == 6
    assert [entry.name for entry in (tmp_path / "log").iterdir() if entry.is_dir()] == []


@pytest.mark.slow
def test_for_two_threads(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "threads": 2,
        "only": "rnn",
        "log": tmp_path / "log",
        "records": tmp_path / "r",
    }
    (path,) = tune(small(), trials=4, jobs=1, **options)
    (record,) = read(path).records
    assert (
        isinstance(record, Record)
        and record.key.threads == 2
        and not [line for line in lines(tmp_path / "log") if "error" in line]
    )
    manifest = tvm_doping.compile(small(), threads=2, records=tmp_path / "r").manifest
    assert "best of 4" in manifest.records[0] and not tvm_doping.compile(small()).manifest.records


def test_what_cannot_be_is_refused_before_anything_runs(tmp_path: Path) -> None:
    options: dict[str, Any] = {"log": tmp_path}
    for wrong in (
        {"trials": 0},
        {"minutes": -1.0},
        {"jobs": 0},
        {"strategy": "luck"},
        {"tracker": "nowhere"},
    ):
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            tune(small(), **options, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="only"):
        tune(small(), **options, only="nonsense")
    with pytest.raises(InvalidInput, match="a regular expression"):
        tune(small(), **options, only="rnn(")
    with pytest.raises(TargetError, match="measure on"):
        tune(small(), "x86-64-v4-bf16", **options) if missing("x86-64-v4-bf16") else _raise()
    assert not (tmp_path / "records").exists()


def missing(name: str) -> list[str]:
    from tvm_doping.targets import missing_features, resolve

    return missing_features(resolve(name).features)


def _raise() -> None:
    raise TargetError("a CPU", "what it has", "to measure on", "")


def test_two_jobs_do_not_write_one_log(tmp_path: Path) -> None:
    log = Log(tmp_path, resume=False)
    log.add({"task": "a"})
    with pytest.raises(TuningError, match="one that runs"):
        Log(tmp_path, resume=True)
    log.close()
    log = Log(tmp_path, resume=True)
    assert log.of("a") == log.lines == [{"task": "a"}]
    log.close()


def test_a_damaged_log_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"task": "a"}\n{\n')
    with pytest.raises(TuningError, match="line 2"):
        tune(small(), log=tmp_path, resume=True)
