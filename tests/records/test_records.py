"""Files of records: what they keep, what they refuse, and which record serves a layer."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.records.making import DEVICE, key, record, weight
from tvm_doping import records, targets
from tvm_doping.errors import RecordError
from tvm_doping.records import Book, RecordFile, batch_class, distance, read, save
from tvm_doping.records.files import to_text

MACHINE = replace(targets.resolve("x86-64-v3"), l1=DEVICE.l1, l2=DEVICE.l2, l3=DEVICE.l3)


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    path = save(tmp_path, DEVICE, "lstm", [record()])
    assert path == tmp_path / "x86-64-v3-some-cpu-r" / "lstm.json"
    assert read(path) == RecordFile(device=DEVICE, operation="lstm", records=(record(),))
    assert to_text(read(path)) == path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["lstm.json"]


@given(st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.floats(1.0, 100.0)), min_size=1, max_size=8))
def test_merging_keeps_the_faster_in_any_order(found: list[tuple[int, float]]) -> None:
    made = [
        RecordFile(device=DEVICE, operation="lstm", records=(record(us, key(batch=n)),)) for n, us in found
    ]

    def merged(files: list[RecordFile]) -> RecordFile:
        whole = files[0]
        for file in files[1:]:
            both = records.merge(whole, file)
            assert isinstance(both, RecordFile)
            whole = both
        return whole

    once = merged(made)
    assert {r.key.batch: r.us[1] for r in once.records} == {
        n: min(us for m, us in found if m == n) for n, _ in found
    }
    assert merged(made[::-1]) == once == records.merge(once, once)


def test_of_another_machine_or_operation_is_not_merged() -> None:
    one = RecordFile(device=DEVICE, operation="lstm", records=(record(),))
    other = one.model_copy(update={"device": DEVICE.model_copy(update={"cpu": "another"})})
    with pytest.raises(RecordError, match="device"):
        records.merge(one, other)


def _damaged(path: Path, *place: Any, value: Any) -> None:
    raw: Any = json.loads(path.read_text())
    inner = raw
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(raw))


WAY = ("records", 0, "choice", "ways", "input")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("format_version",), 3, "format_version 1 or 2; got 3"),
        (("records", 0, "us", "1"), -3.0, "records.0.us.1: needs Input should be greater than 0"),
        (("records", 0, "surprise"), 1, "records.0.surprise: needs Extra inputs are not permitted"),
        ((*WAY, "format"), "nonsense", "a format among csr"),
        ((*WAY, "params"), {"window": 16}, "parameters of csr among"),
        ((*WAY, "format"), None, "parameters of None"),
        (("records", 0, "choice", "numbers", "steps"), 12, "a multiple of lanes"),
        (("records", 0, "heuristic_us"), {"1": 3.0}, "times of the heuristic"),
        (("records", 0, "key", "weights", "input", "nnz"), 0, "no format for the empty S"),
        (("operation",), "linear", "weights .'product'."),
        (("records",), 7, "records: needs"),
    ],
)
def test_a_damaged_file_is_told_with_the_place(tmp_path: Path, place: Any, value: Any, said: str) -> None:
    path = save(tmp_path, DEVICE, "lstm", [record()])
    _damaged(path, *place, value=value)
    with pytest.raises(RecordError, match=said) as refused:
        read(path)
    assert str(path) in str(refused.value)
    with pytest.raises(RecordError):
        Book.of(tmp_path)
    with pytest.raises(RecordError):
        save(tmp_path, DEVICE, "lstm", [record()])


def test_no_file_no_json_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    for path in (tmp_path / "x.json", tmp_path / "none.json"):
        with pytest.raises(RecordError, match=path.name):
            read(path)
    with pytest.raises(RecordError, match="no folder"):
        Book.of(tmp_path / "none")
    with pytest.raises(RecordError, match="can be written"):
        save(tmp_path / "x.json", DEVICE, "lstm", [record()])


def test_the_nearest_of_those_near_enough_serves(tmp_path: Path) -> None:
    far, near, same = (key(weight={"nnz": n}) for n in (3000, 900, 800))
    save(tmp_path, DEVICE, "lstm", [record(made=k) for k in (far, near)])
    book = Book.of(tmp_path)
    found = book.find("lstm", same, MACHINE)
    assert found is not None and found.record.key == near and 0 < found.distance < records.book.NEAR
    save(tmp_path, DEVICE, "lstm", [record(made=same)])
    found = Book.of(tmp_path).find("lstm", same, MACHINE)
    assert found is not None and found.record.key == same and found.distance == 0
    assert book.find("lstm", key(weight={"nnz": 9000}), MACHINE) is None
    assert Book.of(None).find("lstm", same, MACHINE) is None


def test_not_for_another_target_and_less_for_other_caches(tmp_path: Path) -> None:
    save(tmp_path, DEVICE, "lstm", [record()])
    book = Book.of(tmp_path)
    assert book.find("lstm", key(), replace(MACHINE, name="x86-64-v4")) is None
    assert book.find("linear", key(), MACHINE) is None
    other = book.find("lstm", key(), replace(MACHINE, l2=2 * DEVICE.l2))
    assert other is not None and other.distance > 0


@given(st.integers(1, 5000), st.integers(1, 5000), st.floats(0, 1), st.floats(0, 1))
def test_distance_is_symmetric_and_zero_for_itself(a: int, b: int, f: float, g: float) -> None:
    one, other = key(weight={"rows": a, "nnz": b, "fill": f}), key(weight={"rows": b, "nnz": a, "fill": g})
    assert distance(one, one) == 0
    assert distance(one, other) == distance(other, one) >= 0


@pytest.mark.parametrize(
    "other",
    [
        key(batch=4),
        key(threads=2),
        key(precision="fp16"),
        key(weight={"pattern": "block16"}),
        key(weight={"kind": "kronecker", "dims": (16, 8, 16, 8)}),
        key(weight={"nnz": 0, "pattern": "none"}),
    ],
)
def test_what_says_nothing_of_a_layer_is_infinitely_far(other: records.Key) -> None:
    assert distance(key(), other) == math.inf


def test_classes_of_batches() -> None:
    assert [batch_class(n) for n in (1, 2, 3, 4, 5, 8, 9, 33, 64, 65, 1000)] == [
        1,
        2,
        4,
        4,
        8,
        8,
        16,
        64,
        64,
        64,
        64,
    ]
    assert weight().fill == 0.8


def test_own_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TVM_DOPING_RECORDS", str(tmp_path / "mine"))
    assert records.own_folder() == tmp_path / "mine"
    assert Book.of("auto").files == Book.open([records.book.shipped_folder()]).files
    save(records.own_folder(), DEVICE, "lstm", [record()])
    assert record() in [r for file in Book.of("auto").files for r in file.records]


def test_records_that_ship_are_in_order() -> None:
    for file in Book.open([records.book.shipped_folder()]).files:
        assert file.device.target in targets.TARGETS and file.records
        assert all(r.score <= 1.02 * records.model.geometric_mean(r.heuristic_us) for r in file.records)
