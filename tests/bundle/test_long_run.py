"""What examples/long_run.py finds over a million steps, over some thousands."""

from __future__ import annotations

import runpy
from pathlib import Path


def test_memory_distance_and_threads() -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "long_run.py"))
    found = script["long_run"](5_000, 8, 32)
    assert found["growth"] <= 4 * 2**20
    assert max(found["differences"]) <= found["allowed"]
    assert found["same"]
