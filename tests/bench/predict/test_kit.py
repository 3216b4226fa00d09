"""A kit for a device: its programs run without anything else (here under emulation), and its script writes what is sent back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.predict.conftest import needs
from tvm_doping.bench.predict import kit
from tvm_doping.errors import InvalidInput

pytestmark = pytest.mark.slow


def test_the_script_times_every_program_and_writes_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("cortex-a72")
    monkeypatch.setattr(kit, "_READ", (16 << 10,))
    axes = {**kit.AXES, "H": (64,), "compression": (5,), "pattern": ("unstructured",), "T": (1,)}
    script = kit.write_kit(tmp_path / "kit", "cortex-a72", axes=axes, echo=lambda line: None)
    with pytest.raises(InvalidInput, match="not to exist"):
        kit.write_kit(tmp_path / "kit", "cortex-a72", axes=axes)
    command = [sys.executable, str(script), "--seconds", "0.001", "--prefix", "qemu-aarch64-static"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    results = json.loads((tmp_path / "kit" / "results.json").read_text())
    names = ["read-16K", "H64-T1-int8", "H64-T1-dense", "H64-T1-5x-unstructured"]
    assert [cell["name"] for cell in results["cells"]] == names
    for cell in results["cells"]:
        assert cell["name"] in done.stdout
        assert len(cell["samples_us"]) == 5 and cell["us"] > 0 and cell["gbs"] > 0
        assert ("ratio" in cell) == (not cell["name"].startswith("read"))
    assert results["machine"]["cores"] and "results.json" in done.stdout
