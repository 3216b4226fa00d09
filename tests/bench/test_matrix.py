"""The benchmark matrix from filters to report, and what an interruption leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytest.importorskip("matplotlib")

import itertools

from tvm_doping._threads import cores
from tvm_doping.bench import ceilings, matrix, matrix_report, variants
from tvm_doping.bench.cells import FAST, FULL, Variant, filtered, groups, streams_compiled_for
from tvm_doping.errors import BenchError, InvalidInput
from tvm_doping.targets import resolve

pytestmark = pytest.mark.bench

TINY: dict[str, tuple[Any, ...]] = {
    "H": (64,),
    "compression": (5,),
    "pattern": ("unstructured",),
    "batch": (1,),
    "T": (1, 3),
    "threads": (1,),
}


def quiet(line: str) -> None:
    pass


def test_filters_hold_axes_to_values() -> None:
    axes = filtered(FULL, ["H=650/1500,batch=1", "pattern=nm32"])
    assert (axes["H"], axes["batch"], axes["pattern"]) == ((650, 1500), (1,), ("nm32",))
    assert axes["T"] == FULL["T"]
    assert all(set(FAST[name]) <= set(values) for name, values in FULL.items())


@pytest.mark.parametrize("text", ["H", "H=651", "hidden=650", "H=650,", "pattern=nm"])
def test_an_unknown_axis_or_value_is_named(text: str) -> None:
    with pytest.raises(InvalidInput, match="--only"):
        filtered(FULL, [text])


def test_groups_cover_every_cell_once_and_those_that_share_models_come_in_a_row() -> None:
    every = list(groups(FULL, lanes=8))
    assert len({group.name for group in every}) == len(every) == 6 * 4 * 3 * 2
    assert all(len(group.variants) == 18 for group in every)
    shared = [(group.H, streams_compiled_for(group.batch, 8)) for group in every]
    changes = sum(a != b for a, b in itertools.pairwise(shared))
    assert changes == len(set(shared)) - 1 == 6 * 4 - 1


def test_a_variant_survives_its_name() -> None:
    for variant in next(iter(groups(FULL, lanes=16))).variants:
        assert Variant.of(variant.name) == variant


@pytest.mark.slow
def test_the_ceilings_are_those_of_caches_and_units() -> None:
    found = ceilings.measure(resolve("auto"))
    assert ceilings.Ceilings(**json.loads(json.dumps(found.to_dict()))) == found
    assert all(rate > 0.1 for rate in (*found.gbs.values(), found.gmacs))
    assert found.level(1) == "L1" and found.level(1 << 50) == "memory"


@pytest.mark.slow
def test_threads_share_the_roofline() -> None:
    bundle = variants.compiled(64, Variant(compression=5, pattern="unstructured"), "auto", 1, 1)
    sizes = {"L1": 1 << 40}
    found = ceilings.Ceilings(gbs={"L1": 1.0, "memory": 1.0}, sizes=sizes, gmacs=1e3, lanes=8)
    one, two = (ceilings.bound(bundle, found, steps=3, batch=1, threads=threads) for threads in (1, 2))
    assert one["us"] == 2 * two["us"] > 0 and one["by"] == two["by"] == "reading"


@pytest.mark.slow
@pytest.mark.skipif(len(cores()) < 2, reason="needs two cores")
def test_a_group_on_two_threads_is_measured(tmp_path: Path) -> None:
    (path,) = matrix.run(tmp_path, axes={**TINY, "T": (1,), "threads": (2,)}, seconds=0.1, echo=quiet)
    found = json.loads(path.read_text())
    assert path.stem == "H64-N1-T1-threads2" and found["threads"] == len(found["machine"]["cores_used"]) == 2


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    real = matrix._measure

    def counted(group: Any, *rest: Any) -> dict[str, Any]:
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(group.name)
        return real(group, *rest)

    monkeypatch.setattr(matrix, "_measure", counted)
    with pytest.raises(KeyboardInterrupt):
        matrix.run(tmp_path, axes=TINY, seconds=0.1, echo=quiet)
    (kept,) = (tmp_path / "groups").iterdir()
    before = kept.read_bytes()

    monkeypatch.setattr(matrix, "_measure", real)
    paths = matrix.run(tmp_path, axes=TINY, seconds=0.1, echo=quiet)
    assert kept in paths and len(paths) == 2 and kept.read_bytes() == before

    every = matrix_report.cells(matrix.read(tmp_path))
    assert [(cell.H, cell.T) for cell in every] == [(64, 1), (64, 3)]
    for cell in every:
        assert min(cell.us, cell.fp32, cell.int8, cell.dense, cell.roofline) > 0 and cell.bytes > 0
    written = matrix_report.write(tmp_path)
    assert all(written[name].read_bytes()[:4] == b"\x89PNG" for name in ("speedup.png", "roofline.png"))
    assert written["table.md"].read_text().count("| 64 |") == 2
    assert kept.stat().st_size < 4000

    more = {**TINY, "T": (1,), "pattern": ("unstructured", "block16")}
    (path,) = matrix.run(tmp_path, axes=more, seconds=0.1, echo=quiet)
    assert set(json.loads(path.read_text())["models"]) == {"5x unstructured", "5x block16"}
    assert matrix.run(tmp_path, axes={**TINY, "T": (1,)}, echo=quiet) == [path]
    assert set(json.loads(path.read_text())["models"]) == {"5x unstructured", "5x block16"}


def test_results_of_another_machine_are_not_added_to(tmp_path: Path) -> None:
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups" / "H64-N1-T1-threads1.json").write_text('{"machine": {"cpu": "an abacus"}}')
    with pytest.raises(BenchError, match="an abacus"):
        matrix.run(tmp_path, axes=TINY, echo=quiet)


def test_a_folder_without_groups_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="bench-matrix"):
        matrix_report.write(tmp_path)
