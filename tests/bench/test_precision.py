"""Benchmarks of narrow weights: told apart in the results, and compared without being refused."""

from __future__ import annotations

import pytest
import torch

import tvm_doping
from tvm_doping import bench
from tvm_doping.errors import BenchError


def lstm() -> torch.nn.LSTM:
    torch.manual_seed(0)
    return torch.nn.LSTM(12, 16)


def test_the_precision_stands_beside_the_name() -> None:
    results = bench.run(lstm(), precision="int8", steps=(2,), baselines=("gemv-floor",), seconds=1.0)
    ours = results["cells"][0]["engines"][0]
    assert (ours["name"], ours["precision"]) == ("tvm_doping", "int8")
    assert 1e-4 < ours["error"] < 0.1  # more than an fp32 engine may be off
    assert results["settings"]["precision"] == "int8"
    assert {layer["values"] for layer in results["model"]["lstm"]["layers"]} == {"int8"}


def test_a_precision_that_the_bundle_does_not_have_is_refused() -> None:
    bundle = tvm_doping.compile(lstm())
    with pytest.raises(BenchError, match="that of the bundle, exact"):
        bench.run(lstm(), bundle=bundle, precision="fp16", baselines=())
    with pytest.raises(BenchError, match="exact, fp16, bf16, int8"):
        bench.run(lstm(), precision="fp8", baselines=())  # type: ignore[arg-type]
