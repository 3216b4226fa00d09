"""The checks of a kit over the emulated driver: what they run, and that a wrong result is told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.cuda.conftest import SMALL
from tests.cuda.emulation import Driver
from tvm_doping.bench.cuda import checks


def test_every_kind_of_kernel_is_checked() -> None:
    of = {
        kind: {getattr(check, kind) for check in checks.CHECKS}
        for kind in ("structure", "precision", "format")
    }
    assert of["structure"] == {"kronecker", "low_rank", "hybrid", ""}
    assert of["precision"] == {"exact", "fp16", "bf16", "int8"} and of["format"] == {"", "mma16"}
    assert len({check.name for check in checks.CHECKS}) == len(checks.CHECKS)


def test_rounded_weights_may_cost_a_multiple_of_what_they_did_when_compiled() -> None:
    costs = {"y": SimpleNamespace(max_abs=2e-4), "h": SimpleNamespace(max_abs=1e-5)}
    assert checks.allowed(SimpleNamespace(precision_error=costs)) == pytest.approx(2e-3)
    assert checks.allowed(SimpleNamespace(precision_error={})) == 1e-4


@pytest.mark.slow
def test_models_of_a_kit_are_checked_and_a_wrong_one_is_told(with_gpu: Driver, tmp_path: Path) -> None:
    kit, out = tmp_path / "kit", tmp_path / "out"
    checks.prepare(
        kit, SMALL, [check for check in checks.CHECKS if check.name == "tensor-cores-fp16"], hidden=16
    )
    said: list[str] = []
    with_gpu.log()
    assert checks.run(kit, out, said.append)
    assert sum("cooperative" in line for line in with_gpu.log()) >= 4, (
        "sequences of both layers, few streams and many"
    )
    (row,) = json.loads((out / checks.RESULTS).read_text()).values()
    assert 0 < row["error"] <= row["allowed"] < 0.05 and "mma16" in row["formats"]
    assert said == ["1 kinds of kernels checked against PyTorch, 0 of them wrong"]

    path = kit / checks.FOLDER / "tensor-cores-fp16.npz"
    arrays = dict(np.load(path))
    arrays["y40"][4, 39, 0] += 0.1
    with path.open("wb") as file:
        np.savez(file, **arrays)
    assert not checks.run(kit, out, said.append) and "WRONG: 0.1" in said[1]
    path.with_suffix("").rename(kit / "elsewhere")
    assert not checks.run(kit, out, said.append) and "BundleError" in said[3]
