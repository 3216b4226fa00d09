"""head=: what is wanted of the logits, computed with them, against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tvm_doping
from tests.frontend.running import exported
from tvm_doping.errors import InvalidInput
from tvm_doping.models import LanguageModel, dope
from tvm_doping.sparsity.values import Precision

TOKENS = np.random.default_rng(0).integers(0, 40, (5, 19))
HEADS: dict[str, Any] = {
    "argmax": lambda y: y.argmax(-1),
    "log_softmax": lambda y: torch.log_softmax(y, -1),
    "softmax": lambda y: torch.softmax(y, -1),
    "top_k:5": lambda y: y.topk(5),
}


def language_model() -> LanguageModel:
    torch.manual_seed(0)
    return dope(LanguageModel(vocab=40, embedding=32, hidden=32, layers=1), compression=4, modules="*").eval()


def wanted(model: nn.Module, head: str, tokens: np.ndarray = TOKENS) -> list[np.ndarray]:
    with torch.no_grad():
        result = HEADS[head](model(torch.from_numpy(tokens))[0])
    return [part.numpy() for part in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("head", HEADS)
def test_in_place_of_the_logits(head: str) -> None:
    model = language_model()
    bundle = tvm_doping.compile(model, head=head)
    assert model._forward_hooks == {}
    manifest = bundle.manifest
    layer = next(layer for layer in manifest.layers if layer.name == "output")
    assert (layer.op, layer.kernel, layer.plan["head"]) == ("linear", f"linear with {head}", head)
    assert manifest.streaming
    assert [spec.name for spec in manifest.state] == ["h", "c"]
    with bundle.session() as session:
        assert session.verify() < 1e-5
        session.reset()
        got = session.run(TOKENS)
        for mine, theirs in zip(got if isinstance(got, tuple) else (got,), wanted(model, head), strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)
        session.reset()
        steps = [session.step(row) for row in TOKENS]
        first = [step[0] if isinstance(step, tuple) else step for step in steps]
        np.testing.assert_allclose(np.stack(first), wanted(model, head)[0], rtol=0, atol=1e-5)


def test_a_saved_bundle_verifies(tmp_path: Any) -> None:
    tvm_doping.compile(language_model(), head="top_k:5").save(tmp_path / "bundle")
    with tvm_doping.load(tmp_path / "bundle", verify=True) as session:
        assert session.bundle.golden["scores.output_1"].shape[-1] == 40


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_narrow_weights(precision: Precision) -> None:
    manifest = tvm_doping.compile(language_model(), head="argmax", precision=precision).manifest
    # of the logits: how far apart two indices are says nothing
    assert 0 < manifest.precision_error["output.output"].relative < 3e-2
    assert manifest.golden_error is not None
    assert manifest.golden_error < 1e-5


def test_logits_that_are_all_equal() -> None:
    model = LanguageModel(vocab=40, embedding=16, hidden=16, layers=1).eval()
    with torch.no_grad():
        model.output.weight.zero_()
        model.output.bias.fill_(0.5)
    with tvm_doping.compile(model, head="top_k:5").session() as session:
        values, indices = session.run(TOKENS)
    assert (values == 0.5).all()
    assert (indices == np.arange(5)).all()


def test_a_model_whose_output_is_one_tensor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7)).eval()
    x = torch.randn(21, 6)
    with tvm_doping.compile(model, head="argmax").session() as session:
        np.testing.assert_array_equal(session.run(x.numpy()), model(x).argmax(-1).numpy())


@pytest.mark.parametrize(
    ("model", "head", "message"),
    [
        (language_model(), "best", "top_k:K"),
        (language_model(), "top_k:41", "at least 41 logits"),
        (nn.Sequential(nn.Embedding(3, 4), nn.Flatten(0), nn.Linear(4, 2)), "argmax", "."),
    ],
    ids=["no head", "too many", "a model that fails"],
)
def test_what_is_wrong_is_said(model: nn.Module, head: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        tvm_doping.compile(model, head=head)
    assert model._forward_hooks == {}


def test_outputs_that_are_no_logits() -> None:
    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": 2 * x}

    with pytest.raises(InvalidInput, match=r"float32 logits.*dict"):
        tvm_doping.compile(Twice(), head="argmax", example=torch.randn(3, 4))


def test_an_exported_program_is_what_it_is() -> None:
    program = exported(nn.Linear(4, 3), (torch.randn(2, 4),))
    with pytest.raises(InvalidInput, match="ExportedProgram"):
        tvm_doping.compile(program, head="argmax")
