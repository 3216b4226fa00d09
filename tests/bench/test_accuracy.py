"""Every method is trained with the same budget from the same weights, and what it loses is said against dense."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml

import tvm_doping
from tvm_doping import checkpoint
from tvm_doping.bench import accuracy, accuracy_speed
from tvm_doping.bench.accuracy_cells import label
from tvm_doping.errors import BenchError
from tvm_doping.models.tasks.seq2seq import Translator

METHODS = ("doped kronecker", "pruned", "low rank", "smaller dense")
FIELDS: dict[str, Any] = {
    "name": "nano",
    "model": {"embedding": 24, "hidden": 24, "layers": 1},
    "doping": {"structure": "kronecker", "anneal": {"start": 0.0, "end": 0.5, "frequency": 2}},
    "train": {"epochs": 1, "batch": 4, "steps": 6, "log_steps": 10, "save_steps": 50},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, lines in (("train", 60), ("valid", 12), ("test", 12)):
        text = "\n".join(" ".join(rng.choice(list("abcdef"), 6)) for _ in range(lines))
        (tmp_path / f"{split}.txt").write_text(text + "\n")
    return tmp_path


def _recipe(folder: Path, name: str, **changes: Any) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**FIELDS, "name": name, **changes}))
    return str(path)


def test_methods_and_dense_go_on_from_one_trained_model(data: Path) -> None:
    recipe, start = _recipe(data, "nano"), _recipe(data, "nano-dense", doping=None)
    lines: list[str] = []

    def run() -> dict[str, Any]:
        return accuracy.run(
            data / "out",
            recipe,
            data=data,
            methods=METHODS,
            compressions=(4.0, 40.0),
            seeds=(0, 1),
            start=start,
            speed=False,
            echo=lines.append,
        )

    results = run()
    assert json.loads((data / "out" / "accuracy.json").read_text()) == json.loads(json.dumps(results))
    rows = {(row["method"], row["compression"], row["seed"]): row for row in results["runs"]}
    # at 40x the factors alone are too large; pruning has none
    expected = {
        ("pruned", 40.0),
        ("smaller dense", 40.0),
        ("dense", 1.0),
        *((method, 4.0) for method in METHODS),
    }
    assert {key[:2] for key in rows} == expected and {key[2] for key in rows} == {0, 1}
    assert any("doped-kronecker-40x-0: " in line and "compression" in line for line in lines)
    for (method, factor, seed), row in rows.items():
        folder = data / "out" / "runs" / f"{method.replace(' ', '-')}-{factor:g}x-{seed}"
        if method == "smaller dense":
            shapes = checkpoint.load(folder).tensors["lstm.weight_hh_l0"].shape
            assert shapes == ({4.0: (36, 9), 40.0: (8, 2)}[factor])
            smaller = checkpoint.read_config(data / "out" / "runs" / f"start-smaller-{factor:g}x-{seed}")
            assert smaller["model"]["hidden"] == shapes[1] and smaller["model"]["embedding"] == 24
        elif method != "dense":
            assert factor <= row["by_parameters"] < factor * 1.6
            assert row["test"] == checkpoint.read_config(folder)["metrics"]["test_perplexity"]
            first = checkpoint.load(data / "out" / "runs" / f"start-{seed}").tensors["lstm.weight_hh_l0"]
            last = checkpoint.load(folder).structures["lstm.weight_hh_l0"].to_dense()
            assert np.corrcoef(first.ravel(), last.ravel())[0, 1] > 0.2  # it began there
    table = (data / "out" / "accuracy.md").read_text()
    lost = np.mean([rows["pruned", 4.0, s]["test"] / rows["dense", 1.0, s]["test"] - 1 for s in (0, 1)])
    assert "| 4x | pruned |" in table and f"{lost:+.1%}" in table
    before = (data / "out" / "runs" / "pruned-4x-0" / "metrics.jsonl").read_bytes()
    again = run()  # finished runs are left as they are
    assert again["runs"] == results["runs"]
    assert (data / "out" / "runs" / "pruned-4x-0" / "metrics.jsonl").read_bytes() == before


def test_runs_are_compiled_and_timed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(methods: list[str]) -> dict[str, Any]:
        options: dict[str, Any] = {"compressions": [24.0], "seeds": [1], "echo": lambda line: None}
        return accuracy.run(data / "out", _recipe(data, "nano"), data=data, methods=methods, **options)

    results = run(["pruned"])
    rows = {row["method"]: row["compiled"] for row in results["runs"]}
    weights, biases = 4 * 24 * 48, 2 * 4 * 24
    assert rows["dense"]["parameters"] == weights + biases
    assert rows["pruned"]["parameters"] == weights // 24 + biases
    assert rows["pruned"]["bytes"] < rows["dense"]["bytes"] >= 4 * weights
    assert all(row["us"]["median"] > 0 and "LSTM layers" in row["call"] for row in rows.values())
    table = (data / "out" / "accuracy.md").read_text()
    assert f"| {weights // 24 + biases:,} | {rows['pruned']['bytes']:,} |" in table
    assert json.loads((data / "out" / "accuracy.json").read_text())["runs"] == results["runs"]
    asked: list[list[str]] = []

    def timed(folders: dict[str, Path]) -> dict[str, dict[str, Any]]:
        asked.append(sorted(folders))
        return {name: dict(rows["dense"]) for name in folders}

    def changed(old: str, new: str) -> None:
        path = data / "out" / "accuracy.json"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    monkeypatch.setattr(accuracy, "compiled", timed)
    assert run(["pruned"])["runs"] == results["runs"] and asked == [[]]  # what has been timed stays as it was
    shutil.rmtree(data / "out" / "runs" / "pruned-24x-1")  # so only the dense one can be timed again
    changed(f'"cpu": {json.dumps(results["machine"]["cpu"])}', '"cpu": "another"')
    run(["pruned"])
    row = next(row for row in results["runs"] if row["method"] == "dense")
    changed(f'"seconds": {row["seconds"]}', f'"seconds": {row["seconds"] + 1}')
    again = run(["pruned"])["runs"]
    assert asked[1:] == [["dense-1x-1"]] * 2
    assert next(row for row in again if row["method"] == "pruned")["compiled"] == rows["pruned"]
    dense_of_nothing = [row | {"test": 0.0} if row["method"] == "dense" else row for row in results["runs"]]
    assert "| pruned |" in accuracy.markdown(results | {"runs": dense_of_nothing})


def test_settings_of_s_are_varied_and_plotted(data: Path) -> None:
    def run(**changes: Any) -> dict[str, Any]:
        options: dict[str, Any] = {
            "data": data,
            "methods": ["doped kronecker", "low rank"],
            "compressions": [4.0],
            "seeds": [0],
            "vary": {"doping.pattern": ["unstructured", "block4"], "doping.cmr": ["0.2"]},
            "echo": lambda line: None,
        }
        return accuracy.run(data / "out", _recipe(data, "nano"), **options | changes)

    results = run()
    varied = {label(row): row for row in results["runs"] if "vary" in row}
    assert set(varied) == {f"doped kronecker, pattern {p}, cmr 0.2" for p in ("unstructured", "block4")}
    assert sorted(label(row) for row in results["runs"] if "vary" not in row) == ["dense", "low rank"]
    folder = data / "out" / "runs" / "doped-kronecker-pattern-block4-cmr-0.2-4x-0"
    doping = yaml.safe_load((folder / "recipe.yaml").read_text())["doping"]
    assert doping["pattern"] == "block4" and doping["cmr"]["structured"] == doping["cmr"]["sparse"] == 0.2
    steps = [step for step, _, _ in varied["doped kronecker, pattern block4, cmr 0.2"]["annealing"]]
    assert steps == sorted(steps) and len(steps) > 1
    for name in ("accuracy.png", "cancellation.png"):
        assert (data / "out" / name).read_bytes().startswith(b"\x89PNG")
    assert "| doped kronecker, pattern block4, cmr 0.2 |" in (data / "out" / "accuracy.md").read_text()
    for key in ("train.lr", "doping.structure"):
        with pytest.raises(BenchError, match=key):
            run(vary={key: ["1"]})


def test_results_whose_runs_are_gone_are_added_to(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, out = _recipe(data, "nano"), data / "out"
    start = _recipe(data, "nano-dense", doping=None)

    def run(methods: list[str], **changes: Any) -> list[dict[str, Any]]:
        options: dict[str, Any] = {
            "compressions": [4.0],
            "seeds": [0],
            "speed": False,
            "start": start,
            "echo": lambda line: None,
        }
        results = accuracy.run(out, recipe, data=data, methods=methods, **options | changes)
        rows: list[dict[str, Any]] = results["runs"]
        assert json.loads((out / "accuracy.json").read_text())["runs"] == rows
        return rows

    first = run(["pruned"])
    shutil.rmtree(out / "runs")
    write = accuracy._write

    def killed(*results: Any) -> None:
        write(*results)
        raise KeyboardInterrupt

    monkeypatch.setattr(accuracy, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        run(["low rank", "pruned"])
    monkeypatch.setattr(accuracy, "_write", write)
    assert all(row in json.loads((out / "accuracy.json").read_text())["runs"] for row in first)
    second = run(["low rank"])
    assert [row["method"] for row in first] == ["dense", "pruned"]
    assert sorted(row["method"] for row in second) == ["dense", "low rank", "pruned"]
    assert all(row in second for row in first)
    assert {path.name for path in (out / "runs").iterdir()} == {"low-rank-4x-0", "start-0"}
    assert run(["low rank"]) == second
    with pytest.raises(BenchError, match="those of others"):
        run(["low rank"], overrides={"train.lr": 0.1})
    (out / "accuracy.json").write_text("{}")
    with pytest.raises(BenchError, match="what bench-accuracy wrote"):
        run(["low rank"])


def test_refused(data: Path) -> None:
    with pytest.raises(BenchError, match="prunned"):
        accuracy.run(data / "out", _recipe(data, "nano"), data=data, methods=["prunned"])
    with pytest.raises(BenchError, match="dense one"):
        accuracy.run(data / "out", _recipe(data, "nano-dense", doping=None), data=data)
    assert not (data / "out").exists()


def test_what_is_timed_is_one_stream_or_a_beam() -> None:
    bundle = tvm_doping.compile(torch.nn.LSTM(8, 8), example=(torch.zeros(5, 3, 8),))
    (spec,) = bundle.manifest.inputs
    assert bundle.golden[f"input.{spec.name}"].shape[1] == 3
    for streams in (1, 4):
        output, *_ = cast(Any, accuracy_speed._call(bundle, streams)())
        assert output.shape == (streams, 8)


def test_a_translators_decoder_is_timed_step_by_step() -> None:
    """Of its inputs the encoder's outputs have no time axis of a step to take away."""
    part = accuracy_speed.part_of(Translator(20, 20, 8, 8).eval())
    bundle = tvm_doping.compile(part.module, **part.options)
    logits = cast(Any, accuracy_speed._call(bundle, part.options["batch"])())
    assert logits.shape == (part.options["batch"], 20)
