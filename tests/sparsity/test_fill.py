"""What examples/fill.py says of slots is what the formats store, and that it times each order that this machine can run."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse as sp

from tvm_doping import targets
from tvm_doping.sparsity.formats import pack


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "examples" / "fill.py"))


def skewed() -> sp.csr_array:
    """Rows of very different lengths in no order, as training leaves them."""
    rng = np.random.default_rng(0)
    density = rng.permuted(np.tile(0.3 * np.linspace(0.0, 1.0, 16) ** 2, 20))
    mask = rng.random((320, 200)) < density[:, None]
    return sp.csr_array((mask * rng.standard_normal(mask.shape)).astype("float32"))


def test_fills_are_those_of_the_formats(script: dict[str, Any]) -> None:
    S = skewed()
    found = script["fills"](S)
    for order, (name, params) in script["ORDERS"].items():
        if name != "perm8":  # which has no groups of odd numbers of slots
            whole = params if name == "sell16" else {**params, "multiple": 1}
            assert found[order] == round(S.nnz / pack(name, S, **whole).arrays["values"].size, 3), order
    for name in ("perm8", "perm32", "perm2x32"):
        assert found[f"{name}, alike grouped"] > 1.2 * found[f"{name}, natural"]
    assert found["sell16"] > 1.5 * found["sell16, natural"]


def test_each_order_that_runs_here_is_timed(script: dict[str, Any]) -> None:
    found = script["times"](skewed(), 0.01)
    wanted = {"sell16, natural", "sell16"}
    for name, feature in (("perm8", "avx2"), ("perm32", "avx512f"), ("perm2x32", "avx512f")):
        if targets.resolve("auto").has(feature):
            wanted |= {f"{name}, natural", f"{name}, alike grouped"}
    assert set(found) == wanted and min(found.values()) > 0
