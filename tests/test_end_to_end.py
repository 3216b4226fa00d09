"""The main job on a small scale: train, compile, load, and equal PyTorch over a long sequence, in one run and step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tvm_doping
from tvm_doping import checkpoint, models, targets
from tvm_doping.models.train import train

STEPS = 100


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A doped model trained for a part of an epoch: S is annealed to its final density, and not uniform."""
    folder = tmp_path_factory.mktemp("end_to_end") / "run"
    overrides = {
        "model.embedding": 48,
        "model.hidden": 48,
        "train.epochs": 1,
        "train.batch": 128,
        "data.least": 8,
        "train.steps": 25,
        "doping.compression": 6,
        "doping.anneal.frequency": 5,
    }
    train("lm-tiny", out=folder, overrides=overrides, progress=False)
    return folder


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_a_trained_model_equals_pytorch_over_100_steps(trained: Path, target: str, tmp_path: Path) -> None:
    if targets.missing_features(targets.resolve(target).features):
        pytest.skip(f"this CPU cannot run {target}")
    bundle = tvm_doping.compile(trained, target=target)
    bundle.save(tmp_path / "bundle")
    session = tvm_doping.load(tmp_path / "bundle", verify=True)

    model = models.load_model(trained)
    vocabulary = len(checkpoint.read_config(trained)["vocabulary"])
    tokens = np.random.default_rng(0).integers(0, vocabulary, (STEPS, 1))
    with torch.no_grad():
        logits, (h, c) = model(torch.from_numpy(tokens))

    def check(got: np.ndarray) -> None:
        np.testing.assert_allclose(got, logits.numpy(), atol=1e-5, rtol=0)
        assert set(session.state) == {"h", "c"}
        for name, value in {"h": h, "c": c}.items():
            np.testing.assert_allclose(session.state[name], value.numpy(), atol=1e-5, rtol=0, err_msg=name)

    check(session.run(tokens))
    session.reset()
    check(np.stack([session.step(tokens[t]) for t in range(STEPS)]))


def test_compression_is_what_was_asked_for(trained: Path) -> None:
    weights = models.extract(models.load_model(trained)).values()
    dense = sum(w.shape[0] * w.shape[1] for w in weights)
    assert len(list(weights)) == 4
    assert dense / sum(w.parameters for w in weights) == pytest.approx(6, rel=0.02)
