"""Whole models on emulated Arm machines: compiled here, loaded and run there, compared with PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tvm_doping
from tests.emulated import emulator
from tests.emulated.emulator import Emulator
from tvm_doping.models import dope
from tvm_doping.sparsity.values import Precision

pytestmark = [emulator.pytestmark, pytest.mark.slow]


class Model(nn.Module):
    """A language model: embedding, two LSTM layers, layer norm, output layer; with a head, what is likeliest."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 24)
        self.rnn = nn.LSTM(24, 32, 2)
        self.norm = nn.LayerNorm(32)
        self.output = nn.Linear(32, 60)

    def forward(self, tokens: torch.Tensor, state: Any = None) -> Any:
        y, state = self.rnn(self.embedding(tokens), state)
        return self.output(self.norm(y)), state


def model() -> Model:
    torch.manual_seed(3)
    made = Model()
    dope(made, compression=4)
    return made.eval()


# (target, precision, threads, head, cores to run on, "" the target's own): SVE code serves vectors of any length
JOBS: list[tuple[str, Precision, int, str | None, tuple[str, ...]]] = [
    ("cortex-a72", "exact", 1, None, ("",)),
    ("cortex-a76", "fp16", 2, None, ("",)),
    ("neoverse-v1", "exact", 1, "argmax", ("max,sve128=on", "max,sve512=on")),
    ("neoverse-v1", "int8", 1, None, ("",)),
]


@pytest.mark.parametrize(
    ("target", "precision", "threads", "head", "cores"), JOBS, ids=[row[0] for row in JOBS]
)
def test_a_model_as_its_users_run_it(
    target: str, precision: Precision, threads: int, head: str | None, cores: tuple[str, ...], tmp_path: Path
) -> None:
    made = model()
    bundle = tvm_doping.compile(made, target, precision=precision, threads=threads, head=head)
    bundle.save(tmp_path / "bundle")
    gathers = {
        layer.plan["config"]["gather"] for layer in bundle.manifest.layers if "recurrent" in layer.plan
    }
    assert gathers == {"sve" if target == "neoverse-v1" else "lanes"}
    dots = {
        product["dot"]
        for layer in bundle.manifest.layers
        for product in layer.plan.values()
        if isinstance(product, dict) and product.get("dot")
    }
    assert dots == {"exact": set(), "fp16": {"fmla"}, "int8": {"smmla"}}[precision]
    tokens = torch.randint(0, 60, (13, 1))
    with torch.no_grad():
        logits, state = made(tokens)
        more, _ = made(tokens[:4], state)
    wanted = [logits.argmax(-1), more.argmax(-1)] if head else [logits, more]
    # what narrow values cost is in the golden run, with which the session has compared itself
    near = {"exact": 1e-5, "fp16": 2e-2, "int8": 5e-2}[precision]
    for core in cores:
        emulated = Emulator(target, tmp_path, core)
        given = [tokens.numpy(), tokens[:4].numpy()]
        emulated.add("it", given, kind="bundle", folder=str(tmp_path / "bundle"), threads=threads, steps=True)
        results = emulated.run()
        got = [results[f"it/{key}"] for key in ("0", "1", "steps")]
        for array, true in zip(got, (*wanted, wanted[0]), strict=True):
            np.testing.assert_allclose(array, true.numpy(), atol=near)
