"""Predictions of small layers: the counts of loops are those of the packed data, and whole results hold together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.bench.predict.conftest import TOOLS, needs
from tvm_doping import schedules
from tvm_doping.bench import predict, variants
from tvm_doping.bench.cells import Variant
from tvm_doping.bench.predict import model, program, validate
from tvm_doping.bench.predict.assembly import instructions
from tvm_doping.bench.predict.devices import DEVICES, device_of
from tvm_doping.bench.predict.subject import gemv_int8, kernels_of
from tvm_doping.bench.predict.trace import trace
from tvm_doping.errors import BenchError
from tvm_doping.targets import TARGETS, resolve

pytestmark = pytest.mark.slow


def doped(H: int, pattern: str = "unstructured") -> Any:
    return variants.doped(H, Variant(compression=5, pattern=pattern))


def test_every_device_names_a_target_and_its_sources() -> None:
    for device in DEVICES.values():
        assert device.target in TARGETS and device.sources
        sizes = [size for _, size, _ in device.levels]
        rates = [*(rate for _, _, rate in device.levels), device.memory]
        assert sizes == sorted(sizes) and rates == sorted(rates, reverse=True)
        assert device.level(1) == "L1" and device.level(1e12) == "memory"
    with pytest.raises(BenchError, match="cortex-a72"):
        device_of("riscv")


def test_loops_run_as_often_as_the_packed_data_says(tmp_path: Path) -> None:
    needs("x86-64-v3")
    kernels = kernels_of(doped(64, "block16"), resolve("x86-64-v3"), steps=1, batch=1, format="block16")
    built = program.build(kernels, resolve("x86-64-v3"), tmp_path, mark=True)
    code = instructions(built)
    ran = trace(built, code)
    checked = 0
    for index, phase in enumerate(built.phases):
        name = next((name for name in phase.reads if name.endswith("S.block_ptr")), None)
        if name is None or not (ran.phase == index).any():
            continue
        (kernel,) = (k for k in kernels if k.name == phase.kernel)
        starts, executed = np.unique(ran.start[ran.phase == index], return_counts=True)
        each = [sum(code[a].startswith("vfmadd") for a in ran.blocks[int(start)]) for start in starts]
        # two of eight lanes a stored block, wherever LLVM has put the first round of a loop
        assert int(np.dot(executed, each)) == 2 * int(kernel.arguments[name][-1])
        checked += 1
    assert checked == 4  # two layers, two products


def test_the_plans_are_those_of_as_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def choose(*weights: Any, **options: Any) -> Any:
        asked.append(options["steps"])
        return schedules.choose_lstm(*weights, **options)

    monkeypatch.setattr("tvm_doping.bench.predict.subject.schedules", SimpleNamespace(choose_lstm=choose))
    kernels_of(doped(64), resolve("cortex-a72"), steps=35, batch=1)
    assert asked == [35, 35]


@pytest.mark.parametrize("target", list(TOOLS))
def test_a_prediction_holds_together(target: str) -> None:
    needs(target)
    device = device_of(target)
    dense = kernels_of(doped(32), resolve(target), steps=1, batch=1, format="dense")
    made = predict.cell(dense, device)
    assert made["formats"] == "dense"
    assert made["us"] == pytest.approx(sum(phase["us"] for phase in made["phases"]), rel=1e-2)
    weights = sum(phase["bytes"] for phase in made["phases"] if phase["label"].endswith(".W"))
    assert weights == sum(k.arguments[n].nbytes for k in dense for n in k.weights if n.endswith(".W"))
    assert all(phase["us"] >= model.time(phase, device) * 0.999 for phase in made["phases"])
    int8 = predict.cell(gemv_int8(doped(32)), device)
    assert int8["formats"] == "int8" and 0 < int8["us"] < made["us"]


def test_the_sizes_of_the_table_and_a_model(tmp_path: Path) -> None:
    needs("cortex-a72")
    axes: dict[str, tuple[Any, ...]] = {
        **predict.AXES, "H": (64,), "compression": (5,), "pattern": ("unstructured",)
    }  # fmt: skip
    results = predict.run("cortex-a72", axes=axes, echo=lambda line: None)
    assert [c["model"] for c in results["cells"]] == ["dense", "gemv-int8", "5x unstructured"]
    paths = predict.write(results, tmp_path)
    assert json.loads(paths["predict.json"].read_text()) == json.loads(json.dumps(results))
    text = paths["predict.md"].read_text()
    assert "Raspberry Pi 4" in text and "2.5-5.5x" in text and "STREAM" in text
    alone = predict.of_model(doped(64), "cortex-a72")
    assert [c["model"] for c in alone["cells"]] == ["chosen", "dense", "gemv-int8"]


def test_validation_compares_with_the_clock(tmp_path: Path) -> None:
    needs("x86-64-v3")
    device = device_of("x86-64-v3")
    validate.prepare(tmp_path, device, ways=[("csr", "exact")], sizes=[(32, 1)], echo=lambda line: None)
    results = validate.time(tmp_path, device, seconds=0.01)
    (row,) = results["cells"]
    assert row["us"] > 0 and row["ratio"] == pytest.approx(row["predicted"] / row["us"], rel=1e-2)
    assert results["error"]["all"]["cells"] == 1
    assert "| 32 | 1 | csr |" in validate.markdown(results)


def test_errors_are_factors_either_way() -> None:
    rows = [{"format": "csr", "precision": "exact", "ratio": ratio} for ratio in (2.0, 0.5, 1.0, 1.0)]
    assert validate.errors(rows)["all"] == {
        "cells": 4, "typical": 1.414, "worst": 2.0, "within_25_percent": 0.5
    }  # fmt: skip


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm_doping.bench.predict import tools

    monkeypatch.setattr(shutil, "which", lambda name: None)
    tools.llvm.cache_clear()
    with pytest.raises(BenchError, match="apt-get install llvm"):
        tools.llvm("mca")
    tools.llvm.cache_clear()
