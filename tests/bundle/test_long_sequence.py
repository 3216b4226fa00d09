"""A sequence of 10,000 steps in one call takes the memory of what layers hand on, no more: gates and logits come in pieces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import tvm_doping
from tvm_doping.models import LanguageModel, dope

STEPS, HIDDEN, VOCABULARY = 10_000, 64, 1_000
RUN = """
import json, resource, sys
import numpy as np
import tvm_doping

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

with tvm_doping.load({path!r}) as session:
    tokens = np.load({tokens!r})
    session.run(tokens[:300])
    session.reset()
    before = peak()
    found = session.run(tokens)
    grown = peak() - before
    np.save({out!r}, found)
print(json.dumps(grown))
"""


def test_memory_of_ten_thousand_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = dope(
        LanguageModel(vocab=VOCABULARY, embedding=HIDDEN, hidden=HIDDEN, layers=2), compression=5, modules="*"
    ).eval()
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (STEPS, 1))
    folder, given, out = tmp_path / "bundle", tmp_path / "tokens.npy", tmp_path / "found.npy"
    np.save(given, tokens)
    bundle = tvm_doping.compile(model, steps=STEPS, head="argmax")
    bundle.save(folder)
    assert all(layer.plan["config"]["steps"] for layer in bundle.manifest.layers if layer.op == "lstm")
    code = RUN.format(path=str(folder), tokens=str(given), out=str(out))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    handed_on = 3 * STEPS * HIDDEN * 4  # the embedding's rows and the outputs of two layers
    gates, logits = STEPS * 4 * HIDDEN * 4, STEPS * VOCABULARY * 4
    assert json.loads(done.stdout) < handed_on + 2**20 < gates < logits
    with torch.no_grad():
        scores = model(torch.from_numpy(tokens))[0].numpy()
    found = np.take_along_axis(scores, np.load(out)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found, scores.max(axis=-1), rtol=0, atol=2e-5)  # rounding may decide a tie
