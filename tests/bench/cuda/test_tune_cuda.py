"""Tuning a kit, as far as it goes without a GPU: what is tuned in which order and time, what failures do, what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench.cuda.test_bench_cuda import Ticks
from tvm_doping.bench.cells import Variant
from tvm_doping.bench.cuda import __main__ as command
from tvm_doping.bench.cuda import measure as measuring
from tvm_doping.bench.cuda import tune as tuning
from tvm_doping.bench.cuda import weights
from tvm_doping.bench.cuda.cells import MODELS, QUICK, Cell, Model
from tvm_doping.bench.cuda.tune import bundle_of, tune_kit, tune_one, tuned_of
from tvm_doping.bench.variants import doped
from tvm_doping.bundle import Bundle
from tvm_doping.errors import TargetError, TuningError

SMALL = Model(H=48, compression=20)


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """One with a folder for each bundle, and nothing in them."""
    for model in MODELS:
        (tmp_path / "kit" / "bundles" / model.name).mkdir(parents=True)
    return tmp_path / "kit"


def test_what_is_asked_first_is_tuned_first_and_what_is_left_the_next_time(kit: Path, tmp_path: Path) -> None:
    ticks, ran, said, out = Ticks(), list[tuple[str, int, float]](), list[str](), tmp_path / "out"

    def one(kit: Path, out: Path, model: Model, batch: int, minutes: float) -> None:
        ran.append((model.name, batch, minutes))
        ticks.now += 60 * minutes
        bundle_of(out, model, batch).mkdir(parents=True)

    def go(minutes: float) -> None:
        tune_kit(kit, out, QUICK, minutes=minutes, echo=said.append, one=one, clock=ticks)

    go(3)
    # twelve models and batches; three minutes are one each for the first three
    assert ran == [("H1500-20x", 1, 1.0), ("H1500-10x", 1, 1.0), ("H1500-20x-fp16", 1, 1.0)]
    assert said[0].startswith("12 models and batches to tune, 0") and "9 are left" in said[-1]
    go(18)
    assert [minutes for *_, minutes in ran[3:]] == pytest.approx([2.0] * 9), "a share each"
    assert len({each[:2] for each in ran}) == len(ran) == 12
    go(18)
    assert len(ran) == 12 and "12 of them before" in said[-1]


def test_a_search_that_fails_is_told_and_the_others_go_on(kit: Path, tmp_path: Path) -> None:
    ran, said = list[str](), list[str]()

    def one(kit: Path, out: Path, model: Model, batch: int, minutes: float) -> None:
        ran.append(model.name)
        if len(ran) == 1:
            raise TuningError("the schedule of lstm.l0", "one that runs", "crashed: SIGSEGV", "Report this.")
        if len(ran) == 2:
            raise AttributeError("a graph of another PyTorch")

    tune_kit(kit, tmp_path / "out", QUICK, minutes=60, echo=said.append, one=one)
    assert len(ran) == 12 and "crashed: SIGSEGV" in said[1] and "another PyTorch" in said[2]

    def none(*_: Any) -> None:
        raise TargetError("tuning for cuda-sm90", "a GPU", "none", "Go there.")

    with pytest.raises(TargetError):
        tune_kit(kit, tmp_path / "out", QUICK, minutes=60, echo=said.append, one=none)


def test_a_cell_is_measured_again_once_its_models_were_tuned(kit: Path, tmp_path: Path) -> None:
    out, ran = tmp_path / "out", list[Cell]()
    (cell,) = (each for each in QUICK if (each.H, each.batch, each.T) == (650, 32, 1))

    def measured(kit: Path, each: Cell, seconds: float) -> dict[str, Any]:
        ran.append(each)
        return {
            "engines": {name: {"us": {"median": 1.0}} for name in ("20x", *tuned_of(kit, out, each, MODELS))}
        }

    def go() -> None:
        measuring.measure(kit, out, [cell], minutes=1, seconds=0, echo=lambda text: None, cell=measured)

    go()
    go()
    assert len(ran) == 1
    bundle_of(out, Model(H=650, compression=20), 1).mkdir(parents=True)
    go()
    assert len(ran) == 1, "one of another batch"
    bundle_of(out, Model(H=650, compression=20), 32).mkdir()
    go()
    go()
    assert len(ran) == 2 and "20x-tuned" in json.loads((out / cell.file).read_text())["engines"]


@pytest.mark.slow
def test_a_model_from_the_weights_of_its_kit_to_a_bundle_with_its_records(tmp_path: Path) -> None:
    """With this CPU in the GPU's place."""
    kit, out = tmp_path / "kit", tmp_path / "out"
    (kit / "layers").mkdir(parents=True)
    (kit / "kit.json").write_text(json.dumps({"target": "x86-64-v2", "blocks": 1}))
    weights.save(kit / "layers" / SMALL.layers, doped(48, Variant(compression=20, pattern="unstructured")))
    said: list[str] = []
    tune_one(kit, out, SMALL, 2, 0.01, echo=said.append)
    bundle = Bundle.load(bundle_of(out, SMALL, 2))
    assert len(bundle.manifest.records) == 1 and "tuned: " in bundle.manifest.records[0]
    assert all("kronecker" in layer.structure for layer in bundle.manifest.layers), (
        "found in the dense weights"
    )
    assert len(list((out / "records").glob("*/lstm.json"))) == 1
    assert (out / "tuning" / "H48-20x-N2" / "log.jsonl").is_file()


def test_a_machine_that_cannot_tune_says_why_and_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kit = tmp_path / "kit"
    (kit / "bundles" / SMALL.name).mkdir(parents=True)
    (kit / "layers").mkdir()
    (kit / "kit.json").write_text(json.dumps({"target": "cuda-sm90", "blocks": 132}))
    weights.save(kit / "layers" / SMALL.layers, doped(48, Variant(compression=20, pattern="unstructured")))
    monkeypatch.setattr(tuning, "MODELS", (SMALL,))
    monkeypatch.setattr(command, "QUICK", (Cell(H=48, batch=1, T=1),))
    monkeypatch.setattr("tvm_doping.gpu.compute_capability", lambda: "no driver of NVIDIA's (libcuda.so.1)")
    measured: list[Any] = []
    monkeypatch.setattr(command, "measure", lambda *given, **options: measured.append(given))
    assert command.main(["measure", str(kit), "--out", str(tmp_path / "out"), "--quick"]) == 0
    assert "not tuned: tuning for cuda-sm90" in capsys.readouterr().err
    assert len(measured) == 1 and not (tmp_path / "out" / "tuned").exists()
    assert command.main(["measure", str(kit), "--quick", "--tune", "0"]) == 0
    assert "tune" not in capsys.readouterr().err


@pytest.mark.parametrize("right", [True, False])
def test_kernels_are_checked_before_anything_is_tuned_or_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: bool
) -> None:
    """Where there is a GPU; what is wrong stops neither, and shows in the exit status."""
    did: list[str] = []

    def checked(*given: Any) -> bool:
        did.append("checked")
        return right

    monkeypatch.setattr("tvm_doping.gpu.compute_capability", lambda: (9, 0))
    monkeypatch.setattr("tvm_doping.bench.cuda.checks.run", checked)
    monkeypatch.setattr(command, "tune_kit", lambda *given, **options: did.append("tuned"))
    monkeypatch.setattr(command, "measure", lambda *given, **options: did.append("measured"))
    assert command.main(["measure", str(tmp_path), "--out", str(tmp_path / "out")]) == (0 if right else 2)
    assert did == ["checked", "tuned", "measured"]
