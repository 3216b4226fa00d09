"""Tables, plots and page say what the results say."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from rich.console import Console

from tvm_doping import bench
from tvm_doping.bench import report
from tvm_doping.errors import BenchError
from tvm_doping.manifest import LayerReport

pytestmark = pytest.mark.bench


def engine(name: str, median: float, error: float | None, precision: str = "fp32") -> dict[str, Any]:
    us = {"median": median, "p20": 0.9 * median, "p80": 1.2 * median, "samples": 3}
    samples = [0.9 * median, median, 1.2 * median]
    return {"name": name, "precision": precision, "note": "", "error": error, "us": us, "samples_us": samples}


def results() -> dict[str, Any]:
    cells = [
        {
            "scope": scope,
            "steps": steps,
            "batch": 1,
            "engines": [
                engine("tvm_doping", 20.0 * steps, 1e-7),
                engine("onnxruntime", 500.0 * steps, 2e-7),
                engine("onnxruntime-int8", 50.0 * steps, 3e-3, "int8"),
                engine("gemv-floor", 300.0, None),
            ],
        }
        for scope in ("lstm", "model")
        for steps in (1, 35)
    ]
    layer = LayerReport(
        name="lstm.0",
        op="lstm",
        structure="kronecker",
        format="perm32",
        reason="a < b & c",
        bytes=1234567,
        dense_bytes=23456789,
    )
    facts = {
        "target": "znver4",
        "compression": {"by_parameters": 20.04, "by_bytes": 11.96},
        "golden_error": 1e-7,
        "layers": [layer.model_dump(exclude={"plan"}, mode="json")],
    }
    return {
        "format_version": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "machine": {"cpu": "A CPU", "cores": 2, "caches": {"L2": "1024K"}, "versions": {"torch": "2.13"}},
        "settings": {"batch": 1, "threads": 1, "seconds": 1.0, "seed": 0},
        "model": {
            "name": "lm-tiny",
            "layers": [{"inputs": 650, "hidden": 650}],
            "lstm_weights": 3380000,
            "metrics": {"dense_test_perplexity": 82.21, "test_perplexity": 84.49, "epochs": 3.0},
            "lstm": facts,
            "model": facts,
        },
        "cells": cells,
    }


def test_a_row_gives_time_spread_and_ratio_to_ours() -> None:
    ours, onnx, int8, floor = report.rows(results(), "lstm")
    assert onnx.times == ("500 (450-600)", "17,500 (15,750-21,000)")
    assert onnx.ratios == ("25.00x", "25.00x")
    assert ours.ratios == ("", "")
    assert int8.errors == ("3.0e-03", "3.0e-03")
    assert floor.errors == ("", "")


def test_the_whole_model_has_tokens_a_second() -> None:
    given = results()
    for cell in given["cells"]:
        cell["batch"] = 4
    ours, onnx, *_ = report.rows(given, "model")
    assert ours.rates == ("200,000", "200,000")
    assert onnx.rates == ("8,000", "8,000")
    assert next(report.rows(given, "lstm")).rates == ()
    text = report.markdown(given)
    assert text.count("tokens/s |") == 2
    model = text[text.index("Whole model") :]
    assert "| 20.0 (18.0-24.0) | 200,000 |  | 1.0e-07 |" in model
    assert "| T = 1: µs a call (p20-p80) | tokens/s | to tvm_doping | error |" in model
    assert {line.count("|") for line in model.splitlines() if line.startswith("|")} == {11}
    screen = Console(file=io.StringIO(), width=200)
    screen.print(bench.table(given))
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("Tokens a second: tvm_doping 200,000, onnxruntime 8,000,") == 2


def test_the_table_fits_into_80_columns_whole() -> None:
    screen = Console(file=io.StringIO(), width=80)
    screen.print(bench.table(results()))
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert text.count("17,500 (15,750-21,000)") == 2


@pytest.mark.parametrize(
    "text", ["20.0x smaller by parameters, 12.0x by bytes", "test perplexity 84.5 (dense 82.2)"]
)
def test_compression_and_perplexities_stand_beside_the_speed(text: str) -> None:
    assert text in report.markdown(results())
    screen = Console(file=io.StringIO(), width=200)
    screen.print(bench.table(results()))
    assert text in screen.file.getvalue()  # type: ignore[attr-defined]


def test_the_files_of_a_report(tmp_path: Path) -> None:
    paths = bench.write(results(), tmp_path / "out")
    assert set(paths) == {"results.json", "table.md", "lstm.png", "model.png", "report.html"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(paths)
    assert json.loads(paths["results.json"].read_text()) == results()
    assert paths["lstm.png"].read_bytes().startswith(b"\x89PNG")
    html = paths["report.html"].read_text()
    assert "perm32" in html
    assert "a &lt; b &amp; c" in html
    assert html.count("data:image/png;base64,") == 2


def test_something_else_is_no_results() -> None:
    with pytest.raises(BenchError, match="results"):
        bench.table({"other": 1})
