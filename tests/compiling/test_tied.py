"""A weight that is the embedding's and the output layer's is stored once, and both compute what PyTorch does."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from torch import nn
from torch.nn import functional

import tvm_doping
from tests.freestanding.conftest import make, tool
from tvm_doping import targets
from tvm_doping.bundle import Bundle
from tvm_doping.cli.inspect import show_bundle
from tvm_doping.models import LanguageModel, dope
from tvm_doping.verifying import verify

VOCABULARY, HIDDEN = 300, 48
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (7, 2))


def tied(structure: str | None = None) -> nn.Module:
    """A language model with one weight for both; doped, if a structure is given."""
    torch.manual_seed(0)
    model = LanguageModel(VOCABULARY, HIDDEN, HIDDEN, 1, tied=True)
    options: Any = {} if structure is None else {"structure": structure}
    if structure is not None:
        dope(model, modules=["lstm", "output", "embedding"], compression=5, **options)
    return model.eval()


class Functional(nn.Module):
    """The same weight by hand, without a bias: the layer then has the table's name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.lstm = nn.Embedding(VOCABULARY, HIDDEN), nn.LSTM(HIDDEN, HIDDEN)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(self.embedding(tokens))
        return functional.linear(y, self.embedding.weight)


def check(bundle: Bundle, model: nn.Module, folder: Path, near: float = 1e-5) -> dict[str, Any]:
    """It computes what PyTorch does, its arrays differ from each other, its bytes are counted once; its layers by name."""
    with torch.no_grad():
        wanted = model(torch.from_numpy(TOKENS))
    logits = (wanted[0] if isinstance(wanted, tuple) else wanted).numpy()
    bundle.save(folder)
    with tvm_doping.load(folder, verify=True) as session:
        got = session.run(TOKENS)
        np.testing.assert_allclose(got[0] if isinstance(got, tuple) else got, logits, rtol=0, atol=near)
        session.reset()
        got = session.step(TOKENS[0])
        np.testing.assert_allclose(got[0] if isinstance(got, tuple) else got, logits[0], rtol=0, atol=near)
        weights = session.bundle.weights
    contents = {(str(a.dtype), a.shape, a.tobytes()) for a in weights.values()}
    assert len(contents) == len(weights)
    with safe_open(folder / "weights.safetensors", framework="numpy") as file:
        assert sorted(file.keys()) == sorted(weights)
    layers = {layer.name: layer for layer in bundle.manifest.layers}
    other = {name for name in weights if name.split(".")[0] not in {n.split(".")[0] for n in layers}}
    assert sum(a.nbytes for name, a in weights.items() if name not in other) == sum(
        layer.bytes for layer in layers.values()
    )
    verify(folder)
    return layers


def once(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_dense(tmp_path: Path) -> None:
    model = tied()
    bundle = tvm_doping.compile(model)
    layers = check(bundle, model, tmp_path / "b")
    assert (layers["embedding"].tied, layers["output"].tied) == ("output", "")
    assert layers["embedding"].plan["packed"]
    assert (layers["embedding"].bytes, layers["embedding"].format) == (0, "dense")
    assert "embedding.weight" not in bundle.weights
    # the dense model in fp32, panels of which the last one is filled up
    assert 4 * once(model) <= bundle.bytes < 4 * (once(model) + 16 * HIDDEN)
    assert bundle.manifest.compression is not None
    assert bundle.manifest.compression.by_parameters == pytest.approx(1, abs=1e-3)
    assert bundle.manifest.compression.by_bytes == pytest.approx(1, abs=2e-2)


@pytest.mark.parametrize("structure", ["kronecker", "low_rank", "hybrid", "zero"])
def test_doped(structure: str, tmp_path: Path) -> None:
    model = tied(structure)
    bundle = tvm_doping.compile(model, force={"structure": "kept"})
    layers = check(bundle, model, tmp_path / "b")
    table, output = layers["embedding"], layers["output"]
    assert table.tied == "output" and table.plan["packed"]
    assert (table.format, table.structure) == (output.format, output.structure)
    # places of rows that are sorted, V by rows
    beside = 4 * (VOCABULARY + HIDDEN * VOCABULARY * HIDDEN // (5 * (VOCABULARY + HIDDEN)))
    assert table.bytes <= beside < output.bytes
    own = [layer for layer in layers.values() if not layer.tied]
    assert bundle.manifest.compression is not None
    by = bundle.manifest.compression
    assert by.by_parameters == pytest.approx(
        sum(layer.dense_parameters for layer in own) / sum(layer.parameters for layer in own)
    )
    assert by.by_bytes == pytest.approx(sum(layer.dense_bytes for layer in own) / bundle.bytes)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("structure", [None, "kronecker"])
def test_narrow_values(structure: str | None, precision: Any, tmp_path: Path) -> None:
    """Rows are rounded as the output layer's weight is, and what that costs is measured."""
    model = tied(structure)
    bundle = tvm_doping.compile(model, "x86-64-v3", precision=precision)
    layers = check(bundle, model, tmp_path / "b", near=0.1)
    assert layers["embedding"].rounding == layers["output"].rounding
    assert layers["embedding"].values == layers["output"].values


def test_several_targets_and_a_head(tmp_path: Path) -> None:
    model = tied()
    several = tvm_doping.compile(model, ["x86-64-v2", "x86-64-v3"], head="argmax")
    several.save(tmp_path / "b")
    verify(tmp_path / "b")
    assert not any("embedding" in name for part in several.variants for name in part.weights)
    with tvm_doping.load(tmp_path / "b", verify=True) as session, torch.no_grad():
        np.testing.assert_array_equal(
            session.run(TOKENS), model(torch.from_numpy(TOKENS))[0].argmax(-1).numpy()
        )


def test_a_weight_that_is_used_twice_by_hand(tmp_path: Path) -> None:
    model = Functional().eval()
    layers = check(tvm_doping.compile(model), model, tmp_path / "b")
    assert {layer.op: layer.tied for layer in layers.values()} == {
        "embedding": "embedding",
        "linear": "",
        "lstm": "",
    }


def test_another_weight_of_the_same_shape_is_not_tied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LanguageModel(VOCABULARY, HIDDEN, HIDDEN, 1)
    dope(model, modules=["lstm", "output", "embedding"], compression=5)
    layers = check(tvm_doping.compile(model.eval()), model, tmp_path / "b")
    assert layers["embedding"].tied == "" and layers["embedding"].bytes > 0


def test_a_format_that_rows_cannot_be_read_from(tmp_path: Path) -> None:
    """Two copies, and `inspect` says why."""
    bundle = tvm_doping.compile(tied("kronecker"), "x86-64-v4", force={"format": "perm32_expand"})
    table = {layer.name: layer for layer in bundle.manifest.layers}["embedding"]
    assert (table.tied, table.plan["packed"], table.format) == ("output", False, "csr")
    assert "a copy of its own: rows cannot be read from perm32_expand" in table.reason
    own = [layer for layer in bundle.manifest.layers if not layer.tied]
    assert bundle.manifest.compression is not None
    assert bundle.manifest.compression.by_parameters == pytest.approx(
        sum(layer.dense_parameters for layer in own) / sum(layer.parameters for layer in own)
    )
    bundle.save(tmp_path / "b")
    verify(tmp_path / "b")
    with StringIO() as written:
        show_bundle(bundle, Console(file=written, width=1000))
        assert "tied to output, with a copy of its own" in written.getvalue()


@pytest.mark.parametrize("structure", [None, "kronecker", "low_rank"])
def test_c(structure: str | None, tmp_path: Path) -> None:
    if targets.missing_features(targets.TARGETS["x86-64-v3"].features):
        pytest.skip("this CPU cannot run x86-64-v3")
    model = tied(structure)
    bundle = tvm_doping.compile(model, "x86-64-v3")
    made = tvm_doping.compile_c(model, "x86-64-v3", prefix="lm")
    arrays = len(bundle.weights)
    assert made.report.sizes.weights <= bundle.bytes + 64 * arrays
    assert "all as PyTorch gave it" in make(made.save(tmp_path / "c"), "check", f"CC={tool('gcc')}")
