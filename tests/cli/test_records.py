"""`tvm-doping records`: what a user sees of records, and the files that it makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import refused, tvm_doping_
from tests.records.making import DEVICE, key, record
from tvm_doping.records import RecordFile, read, save


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Folders of two runs that measured one layer both, and one more each."""
    for name, us, batch in (("one", 10.0, 4), ("other", 9.0, 8)):
        save(tmp_path / name, DEVICE, "lstm", [record(us), record(20.0, key(batch=batch))])
    return tmp_path / "one", tmp_path / "other"


def test_ls_shows_each_layer_and_its_gain(capsys: Any, two: tuple[Path, Path]) -> None:
    code, out, _ = tvm_doping_(capsys, "records", "ls", two[0])
    assert code == 0
    for word in ("Some CPU (R)", "256 x 64 zero + S of 800", "csr multiple=2", "1.10x", "200 (35)"):
        assert word in out, word


def test_merge_keeps_the_faster_and_check_finds_no_fault(
    capsys: Any, two: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "all"
    assert tvm_doping_(capsys, "records", "merge", *two, "--out", out)[0] == 0
    path = out / "x86-64-v3-some-cpu-r" / "lstm.json"
    merged = read(path)
    assert isinstance(merged, RecordFile)
    assert sorted((r.key.batch, r.us[1]) for r in merged.records) == [(1, 9.0), (4, 20.0), (8, 20.0)]
    code, said, _ = tvm_doping_(capsys, "records", "check", out)
    assert code == 0 and "3 records of lstm" in said
    code, shown, _ = tvm_doping_(capsys, "records", "show", path)
    assert code == 0 and json.loads(shown) == json.loads(path.read_text())


def test_a_damaged_file_is_one_line_and_nothing_is_merged(
    capsys: Any, two: tuple[Path, Path], tmp_path: Path
) -> None:
    (path,) = two[1].glob("*/*.json")
    path.write_text(path.read_text().replace('"csr"', '"cst"'))
    for arguments in (
        ("check", *two),
        ("ls", two[1]),
        ("show", path),
        ("merge", *two, "--out", tmp_path / "all"),
    ):
        assert "a format among" in refused_after_output(capsys, *arguments)
    assert not (tmp_path / "all").exists()
    assert "no" in refused(capsys, "records", "check", tmp_path / "nothing")


def refused_after_output(capsys: Any, *arguments: Any) -> str:
    code, _, err = tvm_doping_(capsys, "records", *arguments)
    assert code == 2 and err.count("\n") == 1
    return str(err)
