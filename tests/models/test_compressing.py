"""compress: any dense model becomes a doped one of the promised size, says what that cost, and trains in a loop of the user's."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_model
from torch import Tensor, nn

from tvm_doping import checkpoint
from tvm_doping.cli import main
from tvm_doping.errors import CheckpointError, InvalidInput, UnfinishedWarning
from tvm_doping.models import (
    Finetuning,
    LanguageModel,
    compress,
    doped_weights,
    extract,
    load_model,
    model_tensors,
)
from tvm_doping.models.moments import moments

APP = """
import torch
from torch import nn

class Tagger(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.lstm, self.out = nn.LSTM(16, hidden, num_layers=2, batch_first=True), nn.Linear(hidden, 10)

    def forward(self, x):
        return self.out(self.lstm(x)[0])

def samples():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 9, 16, generator=generator) for _ in range(4)]

def finetune(model, finetuning):
    optimiser = torch.optim.SGD(model.parameters(), 0.01)
    finetuning.start(20)
    for _ in range(20):
        optimiser.zero_grad()
        model(torch.randn(4, 5, 16)).square().mean().backward()
        optimiser.step()
        finetuning.step()

number = 7

def broken():
    raise KeyError("wanted")
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    path = tmp_path / "app.py"
    path.write_text(APP)
    return path


def tagger() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 48), nn.Tanh(), nn.Linear(48, 32))


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("structure", ["kronecker", "low_rank", "hybrid", "zero"])
@pytest.mark.parametrize("pattern", ["unstructured", "block8"])
def test_sizes_and_errors_are_as_reported(structure: Any, sparse: bool, pattern: str) -> None:
    if structure == "zero" and not sparse:
        return
    model = tagger()
    before = copy.deepcopy(model.state_dict())
    done = compress(model, structure=structure, compression=4, pattern=pattern, sparse=sparse)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    doped = extract(done.model)
    for row in done.report.weights:
        W, other = before[row.name].numpy(), doped[row.name].to_dense()
        assert row.error == pytest.approx(np.linalg.norm(W - other) / np.linalg.norm(W), rel=1e-4)
        assert row.parameters == doped[row.name].parameters
        assert row.parameters <= W.size / 4 + (8 if sparse and pattern == "block8" else 0)
        assert row.bytes >= 4 * row.parameters and row.output_error is None
    dense = sum(value.numel() for value in model.parameters())
    saved = sum(row.dense_parameters - row.parameters for row in done.report.weights)
    assert done.report.parameters == dense - saved and done.report.by_parameters > 2
    assert done.folder is None and not done.report.was_finetuned


def test_samples_give_the_error_of_outputs_and_lower_it() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 40)
    model = nn.Sequential(layer)
    mixing = torch.randn(6, 24)
    samples = [torch.randn(50, 6) @ mixing + 0.1 * torch.randn(50, 24) for _ in range(4)]
    plain, aware = compress(model, compression=5), compress(model, compression=5, samples=samples)
    fresh = torch.randn(200, 6) @ mixing + 0.1 * torch.randn(200, 24)
    left = [float((done.model(fresh) - model(fresh)).detach().norm()) for done in (plain, aware)]
    assert left[1] < 0.8 * left[0]
    (row,) = aware.report.weights
    X, W = torch.cat(samples).numpy(), layer.weight.detach().numpy()
    E = W - extract(aware.model)["0.weight"].to_dense()
    assert row.output_error == pytest.approx(np.linalg.norm(X @ E.T) / np.linalg.norm(X @ W.T), rel=1e-3)
    y = model(torch.cat(samples)).detach()
    whole = float((aware.model(torch.cat(samples)).detach() - y).norm() / y.norm())
    assert aware.report.output_error == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("form", [{}, {"batch_first": True}, {"bidirectional": True}])
def test_moments_are_of_what_each_weight_multiplies(form: dict[str, Any]) -> None:
    lstm, x = nn.LSTM(5, 4, num_layers=2, **form), torch.randn(6, 3, 5)
    met: dict[str, Any] = dict(moments(lstm, [x]))
    assert sorted(met) == sorted(name for name, _ in lstm.named_parameters() if name.startswith("weight"))
    flat = x.reshape(-1, 5).numpy().astype(np.float64)
    np.testing.assert_allclose(met["weight_ih_l0"].gram, flat.T @ flat, rtol=1e-5)
    one = nn.LSTM(5, 4, **form)
    one.load_state_dict({name: value for name, value in lstm.state_dict().items() if "_l0" in name})
    y = one(x)[0].detach()
    between = y.reshape(-1, y.shape[-1]).numpy().astype(np.float64)
    np.testing.assert_allclose(met["weight_ih_l1"].gram, between.T @ between, rtol=1e-4, atol=1e-6)
    h = (
        (y.transpose(0, 1) if form.get("batch_first") else y)[:-1, :, :4]
        .reshape(-1, 4)
        .numpy()
        .astype(np.float64)
    )
    np.testing.assert_allclose(met["weight_hh_l0"].gram, h.T @ h, rtol=1e-4, atol=1e-6)
    tokens = torch.tensor([[0, 2, 2]])
    rows = moments(nn.Embedding(4, 3), [tokens])["weight"].rows
    assert rows is not None and rows.tolist() == [1, 0, 2, 0]


def test_finetuning_starts_at_the_dense_model_and_ends_sparse() -> None:
    model, x, seen = tagger(), torch.randn(7, 16), []

    def loop(doped: nn.Module, finetuning: Finetuning) -> None:
        assert doped.training
        finetuning.start(10)
        torch.testing.assert_close(doped(x), model(x), rtol=1e-4, atol=1e-5)
        optimiser = torch.optim.SGD(doped.parameters(), 0.05)
        for _ in range(10):
            optimiser.zero_grad()
            doped(x).square().mean().backward()
            optimiser.step()
            finetuning.step()
            seen.append(finetuning.density)

    done = compress(model, compression=5, finetune=loop, anneal=0.5)
    assert seen == sorted(seen, reverse=True) and seen[4] == seen[-1] < 0.2 < seen[0]
    assert not done.model.training and done.report.was_finetuned
    for row in done.report.weights:
        assert row.parameters <= row.dense_parameters / 5
        assert row.finetuned_error is not None and row.finetuned_error != row.error


def test_the_rate_of_cmr_ends_with_the_annealing() -> None:
    rates = []

    def loop(doped: nn.Module, finetuning: Finetuning) -> None:
        finetuning.start(4)
        for _ in range(4):
            rates.append({weight.cmr_sparse for *_, weight in doped_weights(doped)})
            finetuning.step()

    compress(tagger(), compression=5, finetune=loop, cmr=0.25)
    assert rates == [{0.25}, {0.25}, {0.0}, {0.0}]


@pytest.mark.parametrize(("taken", "words"), [(3, "took 3 of the 10 steps"), (0, r"never called step\(\)")])
def test_a_loop_that_ends_early_is_warned_of_and_closed(taken: int, words: str) -> None:
    def loop(doped: nn.Module, finetuning: Finetuning) -> None:
        finetuning.start(10)
        for _ in range(taken):
            finetuning.step()

    with pytest.warns(UnfinishedWarning, match=words):
        done = compress(tagger(), compression=5, finetune=loop)
    assert all(row.parameters <= row.dense_parameters / 5 for row in done.report.weights)


def test_from_a_factory_to_a_folder_and_back(app: Path, tmp_path: Path) -> None:
    spec, x = f"{app}:Tagger", torch.randn(2, 4, 16)
    dense = compress(spec, arguments={"hidden": 24}, compression=4).model
    save_model(_undoped(dense), str(tmp_path / "w.safetensors"))
    done = compress(
        spec, tmp_path / "run", arguments={"hidden": 24}, weights=tmp_path / "w.safetensors", compression=4
    )
    torch.testing.assert_close(load_model(tmp_path / "run", spec)(x), done.model(x))
    with pytest.raises(CheckpointError, match=r"--factory .*app\.py:Tagger"):
        load_model(tmp_path / "run")
    assert checkpoint.read_config(tmp_path / "run")["report"]["weights"][0]["shape"] == [96, 16]


def _undoped(model: nn.Module) -> nn.Module:
    from tvm_doping.models import undope

    return undope(copy.deepcopy(model))


def test_a_run_folder_of_a_dense_model(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"vocab": 9, "embedding": 16, "hidden": 16, "layers": 2}
    config = {
        "task": "language_model",
        "model": sizes,
        "metrics": {"test_perplexity": 5.0},
        "vocabulary": ["a"],
    }
    checkpoint.save(tmp_path / "dense", config, *model_tensors(LanguageModel(**sizes)))
    tokens = torch.randint(9, (5, 2))
    done = compress(tmp_path / "dense", tmp_path / "doped", modules="lstm", compression=3, samples=[tokens])
    loaded: Any = load_model(tmp_path / "doped")
    torch.testing.assert_close(loaded(tokens)[0], done.model(tokens)[0])
    stored = checkpoint.read_config(tmp_path / "doped")
    assert stored["vocabulary"] == ["a"] and stored["dense_metrics"] == {"test_perplexity": 5.0}
    assert stored["metrics"] == {} and len(stored["structures"]) == 4
    with pytest.raises(InvalidInput, match="weights that are dense"):
        compress(tmp_path / "doped")


def test_the_command_line(app: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "compress",
        f"{app}:Tagger",
        "--arg",
        "hidden=24",
        "--compression",
        "4",
        "--out",
        str(tmp_path / "run"),
    ]
    more = [
        "--samples",
        f"{app}:samples",
        "--finetune",
        f"{app}:finetune",
        "--structure",
        "low_rank",
        "--modules",
        "lstm",
    ]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *more, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert not ended.value.code and found["folder"] == str(tmp_path / "run")
    assert all(w["structure"].startswith("low rank") for w in found["weights"])
    assert found["finetuned_output_error"] > 0 and found["by_parameters"] > 2
    with pytest.raises(SystemExit):
        main(arguments)
    shown = capsys.readouterr().out
    assert "whole model:" in shown and "--factory" in shown


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda app: compress("app.py"), CheckpointError, "config.json"),
        (lambda app: compress(f"{app.parent}/absent.py:make"), InvalidInput, "none there"),
        (lambda app: compress("no_such_package:make"), InvalidInput, "can be imported"),
        (lambda app: compress(f"{app}:Lstm"), InvalidInput, "It has: .*Tagger"),
        (lambda app: compress(f"{app}:broken"), InvalidInput, "KeyError"),
        (lambda app: compress(f"{app}:number"), InvalidInput, "function or class"),
        (lambda app: compress(f"{app}:samples"), InvalidInput, "got list"),
        (lambda app: compress(f"{app}:Tagger", arguments={"size": 3}), InvalidInput, "size"),
        (lambda app: compress(f"{app}:Tagger", weights=app.parent / "no"), CheckpointError, "a file"),
        (lambda app: compress(f"{app}:Tagger", weights=app), CheckpointError, "safetensors"),
        (lambda app: compress(tagger(), samples=[torch.randn(3)]), InvalidInput, "takes"),
        (lambda app: compress(tagger(), samples=[]), InvalidInput, "samples"),
        (lambda app: compress(tagger(), weights="w"), InvalidInput, "factory"),
        (lambda app: compress(tagger(), compression=10_000), InvalidInput, "at most"),
        (lambda app: compress(tagger(), factors=(7, 5)), InvalidInput, "divisors"),
        (
            lambda app: compress(tagger(), compression=5, finetune=lambda m, f: f.start(0)),
            InvalidInput,
            "at least 1",
        ),
        (lambda app: compress(tagger(), finetune=f"{app}:number"), InvalidInput, "finetune"),
        (
            lambda app: compress(tagger(), compression=5, finetune=f"{app}:finetune", anneal=2),
            InvalidInput,
            "anneal",
        ),
        (lambda app: compress(_with_nan()), InvalidInput, "NaN"),
        (lambda app: compress(tagger(), compression=5, finetune=_diverge), InvalidInput, "learning rate"),
    ],
)
def test_what_cannot_be_compressed_is_said(app: Path, make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make(app)


def _with_nan() -> nn.Module:
    layer = nn.Linear(16, 16)
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    return nn.Sequential(layer)


def _diverge(model: nn.Module, finetuning: Finetuning) -> None:
    bias: Tensor = model.get_parameter("0.bias")
    bias.data.fill_(float("inf"))
    finetuning.step()
