"""A few hundred hostile inputs for each loader, the same in every run; `make fuzz` tries as many as one likes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.hostile import TARGET
from tvm_doping import checkpoint, records
from tvm_doping.bundle import Bundle
from tvm_doping.errors import DopingError
from tvm_doping.models import load_recipe


@pytest.mark.parametrize("name", TARGET)
@given(data=st.binary(min_size=2, max_size=64))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_loaders_survive_what_they_are_given(tmp_path: Path, name: str, data: bytes) -> None:
    TARGET[name](data, tmp_path)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{key}: &{key} [{', '.join(['*' + before] * 10)}]\n"
    for before, key in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (LAUGHS, "alias"),
        ("name: a\nname: b\n", "twice"),
        ("[" * 5000, "YAML"),
        ("name: 2001-99-99\n", "YAML"),
        ("x" * (2**20 + 1), "bytes"),
        ("name: \0\n", "YAML"),
    ],
)
def test_yaml_that_is_not_what_it_seems(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(DopingError, match=word) as error:
        load_recipe(tmp_path / "r.yaml")
    assert len(str(error.value)) < 5000


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}', "[" * 100_000, "{}garbage", "\ufeff{}", ""]
)
def test_json_that_is_none_is_refused_everywhere(tmp_path: Path, text: str) -> None:
    for name in ("bundle.json", "config.json", "r.json"):
        (tmp_path / name).write_text(text, encoding="utf-8")
    for read in (
        lambda: Bundle.load(tmp_path),
        lambda: checkpoint.load(tmp_path),
        lambda: records.read(tmp_path / "r.json"),
    ):
        with pytest.raises(DopingError, match="JSON"):
            read()


def test_pipes_and_folders_are_no_files(tmp_path: Path) -> None:
    for make in (os.mkfifo, os.mkdir):
        place = tmp_path / make.__name__
        place.mkdir()
        for name in ("bundle.json", "config.json", "r.json", "r.yaml"):
            make(place / name)
        for read in (
            lambda place=place: Bundle.load(place),
            lambda place=place: checkpoint.load(place),
            lambda place=place: records.read(place / "r.json"),
            lambda place=place: load_recipe(place / "r.yaml"),
        ):
            with pytest.raises(DopingError):
                read()


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "loop"])
def test_paths_that_no_system_has(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for read in (Bundle.load, checkpoint.load, records.read, lambda path: load_recipe(f"{path}.yaml")):
        with pytest.raises(DopingError):
            read(tmp_path / name)
