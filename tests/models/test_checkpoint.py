"""Run folders: what is saved is loaded, S sparse; what is damaged is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_doping import checkpoint, structures
from tvm_doping.errors import CheckpointError

CONFIG: dict[str, Any] = {"task": "none", "model": {}, "metrics": {"test_perplexity": float("inf")}}


def doped(seed: int, m: int = 12, n: int = 10, density: float = 0.2) -> structures.Doped:
    random = np.random.default_rng(seed)
    S = random.standard_normal((m, n)) * (random.random((m, n)) < density)
    B, C = (random.standard_normal(shape, np.float32) for shape in ((3, 2), (m // 3, n // 2)))
    return structures.Doped(structures.Kronecker(B, C), S)


@given(seed=st.integers(0, 2**16), density=st.sampled_from([0.0, 0.05, 1.0]))
def test_save_and_load(tmp_path_factory: pytest.TempPathFactory, seed: int, density: float) -> None:
    folder = tmp_path_factory.mktemp("run")
    one, zero = doped(seed, density=density), structures.Doped(structures.Zero((4, 6)), np.eye(4, 6))
    bias = np.arange(5, dtype=np.float32)
    checkpoint.save(folder, CONFIG, {"bias": bias}, {"lstm.w": one, "out.weight": zero})
    found = checkpoint.load(folder)
    np.testing.assert_array_equal(found.tensors["bias"], bias)
    assert set(found.tensors) == {"bias"} and set(found.structures) == {"lstm.w", "out.weight"}
    for name, want in (("lstm.w", one), ("out.weight", zero)):
        got = found.structures[name]
        assert isinstance(got, structures.Doped)
        np.testing.assert_array_equal(got.to_dense(), want.to_dense())
        assert got.parameters == want.parameters and got.base.kind == want.base.kind
    total = found.config["compression"]
    assert total["by_parameters"] == pytest.approx((120 + 24) / (one.parameters + zero.parameters))
    assert found.config["metrics"] == {"test_perplexity": None}


def test_s_is_stored_sparse(tmp_path: Path) -> None:
    big = structures.Doped(structures.Zero((1000, 1000)), np.eye(1000))
    checkpoint.save(tmp_path, CONFIG, {}, {"w": big})
    assert (tmp_path / checkpoint.WEIGHTS).stat().st_size < 20_000


def test_metrics_are_added(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {**CONFIG, "metrics": {"a": 1}}, {"x": np.zeros(2, np.float32)})
    checkpoint.update_metrics(tmp_path, {"b": 2.0})
    assert checkpoint.load(tmp_path).config["metrics"] == {"a": 1, "b": 2.0}
    assert checkpoint.load(tmp_path).config["compression"]["by_parameters"] is None


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, CONFIG, {"x": np.zeros(2, np.float32)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda f: (f / "config.json").unlink(), "Train first"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "format version"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 40), "damaged"),
        (lambda f: _edit(f, format_version=99), "format version 1"),
        (
            lambda f: _edit(f, structures={"w": {"kind": "doped", "shape": [3, 3], "base": "kronecker"}}),
            "sound",
        ),
        (lambda f: _edit(f, structures={"w": {"kind": "toeplitz", "shape": [12, 10]}}), "sound"),
        (lambda f: _edit(f, structures=None), "sound"),
    ],
)
def test_damage_is_refused(tmp_path: Path, damage: Any, word: str) -> None:
    checkpoint.save(tmp_path, CONFIG, {"x": np.zeros(2, np.float32)}, {"w": doped(0)})
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=word):
        checkpoint.load(tmp_path)


def test_a_config_without_its_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="task"):
        checkpoint.save(tmp_path, {"model": {}}, {})
    with pytest.raises(CheckpointError, match="one value"):
        checkpoint.save(tmp_path, CONFIG, {"w": np.zeros(1, np.float32)}, {"w": doped(0)})
