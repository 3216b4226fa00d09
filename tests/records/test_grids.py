"""Records of GPUs: a grid in place of a CPU's numbers, as text and back, what is refused, and files from before there were any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.records.making import DEVICE, key, record
from tvm_doping import records
from tvm_doping.errors import RecordError
from tvm_doping.records import Choice, GridNumbers, Numbers, Record, Way, read, save

GPU = DEVICE.model_copy(update={"target": "cuda-sm90", "cpu": "NVIDIA H200", "cores": 132})
GRID = GridNumbers(parts=130, threads=512, tile_from=8)


def on_gpu(us: float = 10.0, *, precision: Any = "exact", way: Way | None = None, grid: Any = GRID) -> Record:
    ways = {name: way or Way(format="sell32") for name in ("input", "recurrent")}
    choice = Choice(ways=ways, numbers=Numbers(lanes=1, registers=0, grid=grid))
    return record(us, key(precision=precision), choice=choice)


def test_a_grid_is_kept_as_text_for_people_and_the_faster_wins(tmp_path: Path) -> None:
    path = save(tmp_path, GPU, "lstm", [on_gpu(20.0)])
    save(tmp_path, GPU, "lstm", [on_gpu(10.0)])
    assert path.parent.name == "cuda-sm90-nvidia-h200"
    assert read(path).records == (on_gpu(10.0),)
    raw = json.loads(path.read_text())
    assert raw["format_version"] == 2
    assert raw["records"][0]["choice"]["numbers"]["grid"] == {"parts": 130, "threads": 512, "tile_from": 8}
    merged = records.merge(read(path), read(path))
    assert merged == read(path)


def test_a_file_from_before_there_were_grids_is_read_and_added_to(tmp_path: Path) -> None:
    path = save(tmp_path, DEVICE, "lstm", [record()])
    raw = json.loads(path.read_text())
    raw["format_version"] = 1
    del raw["records"][0]["choice"]["numbers"]["grid"]
    path.write_text(json.dumps(raw))
    assert read(path).records == (record(),)
    save(tmp_path, DEVICE, "lstm", [record(made=key(batch=4))])
    assert len(read(path).records) == 2 and json.loads(path.read_text())["format_version"] == 2


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("numbers", "grid", "threads"), 500, r"numbers.grid.threads: needs .*multiple of 32"),
        (("numbers", "grid", "threads"), 2048, "numbers.grid.threads: needs .*1024"),
        (("numbers", "grid", "parts"), 0, "numbers.grid.parts: needs .*greater than or equal to 1"),
        (("numbers", "grid", "blocks"), 3, "numbers.grid.blocks: needs Extra inputs"),
        (("numbers", "lanes"), 8, "no other numbers beside a grid"),
        (("numbers", "grid"), None, "registers of a CPU, or a grid of a GPU"),
        (("ways", "input", "format"), "csr", "for a grid of blocks sell32, mma16 or dense"),
        (("ways", "input", "format"), "mma16", "values of mma16 in fp16 or bf16, not fp32, for input"),
        (("ways", "input", "values"), "fp16", "values of input in fp32, not fp16"),
    ],
)
def test_what_no_gpu_runs_is_refused_with_its_place(
    tmp_path: Path, place: tuple[str, ...], value: Any, said: str
) -> None:
    path = save(tmp_path, GPU, "lstm", [on_gpu()])
    raw = json.loads(path.read_text())
    inner = raw["records"][0]["choice"]
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    path.write_text(json.dumps(raw))
    with pytest.raises(RecordError, match=said):
        read(path)


def test_tensor_cores_where_the_precision_allows_them() -> None:
    narrow = Way(format="mma16", values="bf16")
    assert on_gpu(precision="bf16", way=narrow).choice.gpu
    with pytest.raises(ValidationError, match="values of input in fp16 or fp32, not bf16"):
        on_gpu(precision="fp16", way=narrow)


def test_one_file_is_of_one_kind_of_machine(tmp_path: Path) -> None:
    save(tmp_path, GPU, "lstm", [on_gpu()])
    with pytest.raises(ValueError, match="numbers of CPUs or grids of a GPU, not both"):
        save(tmp_path, GPU, "lstm", [on_gpu(), record(made=key(batch=2))])
