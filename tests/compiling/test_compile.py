"""From a model to a bundle that runs: what users call, and what they may get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tvm_doping
from tests.frontend.running import exported
from tests.passes.models import Tagger, doped, plain
from tvm_doping import checkpoint, models, schedules, targets
from tvm_doping.errors import (
    CheckpointError,
    DopingError,
    InvalidInput,
    RecordError,
    ScheduleError,
    SessionError,
    UnfinishedWarning,
)
from tvm_doping.models import LanguageModel, dope
from tvm_doping.models.doping import doped_weights, original
from tvm_doping.passes import Context, pipeline
from tvm_doping.records import Device, Record, save
from tvm_doping.schedules.recorded import choice_of, key_of
from tvm_doping.targets import resolve


def run(bundle: Any, *inputs: np.ndarray) -> Any:
    with bundle.session() as session:
        return session.run(*inputs)


def tokens(steps: int = 5, streams: int = 2, below: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, below, (steps, streams))


def test_a_doped_model() -> None:
    model = doped(hidden=32)
    bundle = tvm_doping.compile(model)
    wanted = model(torch.from_numpy(tokens())).detach().numpy()
    np.testing.assert_allclose(run(bundle, tokens()), wanted, rtol=0, atol=1e-5)
    manifest = bundle.manifest
    assert manifest.name == "Tagger"
    assert [layer.name for layer in manifest.layers] == ["output", "rnn.l0"]
    assert manifest.golden_error is not None
    assert manifest.golden_error < 1e-5
    lstm = manifest.layers[1]
    assert lstm.op == "lstm"
    assert "kronecker" in lstm.structure
    assert lstm.parameters < lstm.dense_parameters
    assert lstm.dense_parameters == 2 * 4 * 32 * 32 + 2 * 4 * 32
    assert lstm.bytes == sum(a.nbytes for name, a in bundle.weights.items() if name.startswith("rnn.l0."))
    assert lstm.reason
    assert manifest.compression is not None
    assert manifest.compression.by_parameters > 2
    embedding = sum(a.nbytes for name, a in bundle.weights.items() if "." not in name.removesuffix(".weight"))
    assert embedding > 0
    stored = sum(a.nbytes for a in bundle.weights.values())
    dense = sum(layer.dense_bytes for layer in manifest.layers) + embedding
    assert manifest.compression.by_bytes == pytest.approx(dense / stored)
    assert {"tvm", "tvm_ffi", "torch", "python", "tvm_doping"} <= set(manifest.versions)
    assert {"input.tokens", "output.output", "state.rnn.l0.h", "new_state.rnn.l0.c"} <= set(bundle.golden)


def test_a_dense_model_and_a_batch() -> None:
    model = plain()
    bundle = tvm_doping.compile(model, batch=16)
    wanted = model(torch.from_numpy(tokens(3, 21))).detach().numpy()
    np.testing.assert_allclose(run(bundle, tokens(3, 21)), wanted, rtol=0, atol=1e-5)
    assert all("dense" in layer.structure for layer in bundle.manifest.layers)


def test_both_directions_are_no_stream() -> None:
    model = plain(bidirectional=True)
    bundle = tvm_doping.compile(model)
    wanted = model(torch.from_numpy(tokens())).detach().numpy()
    np.testing.assert_allclose(run(bundle, tokens()), wanted, rtol=0, atol=1e-5)
    assert not bundle.manifest.streaming


def test_a_model_that_looks_across_time_is_no_stream() -> None:
    class Ranks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(6, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(self.rnn(x)[0], 0)

    model, x = Ranks(), torch.randn(5, 2, 6)
    bundle = tvm_doping.compile(model)
    assert not bundle.manifest.streaming
    with bundle.session() as session:
        with pytest.raises(SessionError, match=r"whole sequence, as 'output' of 6 steps.*Use run"):
            session.step(x[0].numpy())
        wanted = model(x).detach().numpy()
        for _ in range(2):  # the second run does not go on from the first
            np.testing.assert_allclose(session.run(x.numpy()), wanted, rtol=0, atol=1e-5)


def test_an_exported_program() -> None:
    model = doped()
    program = exported(model, (torch.from_numpy(tokens()),))
    bundle = tvm_doping.compile(program)
    wanted = model(torch.from_numpy(tokens())).detach().numpy()
    np.testing.assert_allclose(run(bundle, tokens()), wanted, rtol=0, atol=1e-5)
    assert bundle.manifest.inputs[0].shape == (5, 2)


def test_a_run_folder(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = LanguageModel(vocab=9, embedding=16, hidden=16, layers=2)
    dope(model, compression=4, modules=["lstm.*", "embedding"])
    tensors, structures = models.model_tensors(model)
    config = {
        "task": "language_model",
        "model": {"vocab": 9, "embedding": 16, "hidden": 16, "layers": 2},
        "metrics": {"test_perplexity": 12.5},
        "vocabulary": list("abcdefghi"),
        "tokens": "characters",
    }
    folder = checkpoint.save(tmp_path / "tiny", config, tensors, structures)
    assert set(checkpoint.load(folder).structures) == set(structures)
    bundle = tvm_doping.compile(folder, dump=tmp_path / "ir")
    assert "embedding.weight" not in bundle.weights
    assert {layer.name: layer.op for layer in bundle.manifest.layers}["embedding"] == "embedding"
    assert bundle.manifest.name == "tiny"
    assert bundle.manifest.tokens == "characters"
    assert tuple(bundle.vocabulary) == tuple("abcdefghi")
    assert bundle.manifest.metrics["test_perplexity"] == 12.5
    assert [spec.name for spec in bundle.manifest.state] == ["h", "c"]
    passes = pipeline(Context(target=resolve("auto")))
    assert len(list((tmp_path / "ir").iterdir())) == 1 + len(passes)
    bundle.save(tmp_path / "bundle")
    session = tvm_doping.load(tmp_path / "bundle", verify=True)
    with torch.no_grad():
        wanted, _ = model.eval()(torch.from_numpy(tokens()))
    np.testing.assert_allclose(session.run(tokens()), wanted.numpy(), rtol=0, atol=1e-5)


def test_a_tied_run_folder(tmp_path: Any) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab": 40, "embedding": 32, "hidden": 32, "layers": 1, "tied": True}
    model = dope(LanguageModel(**sizes), compression=4, modules="*")
    tensors, structures = models.model_tensors(model)
    assert "embedding.weight" in structures and "output.weight" not in structures
    assert list(tensors) == ["lstm.bias_ih_l0", "lstm.bias_hh_l0", "output.bias"]
    folder = checkpoint.save(
        tmp_path / "tied", {"task": "language_model", "model": sizes}, tensors, structures
    )
    again = models.load_model(folder)
    with torch.no_grad():
        wanted, _ = model.eval()(torch.from_numpy(tokens()))
        torch.testing.assert_close(again(torch.from_numpy(tokens()))[0], wanted, rtol=0, atol=0)
    bundle = tvm_doping.compile(folder)
    assert [layer.name for layer in bundle.manifest.layers] == ["embedding", "lstm.l0", "output"]
    np.testing.assert_allclose(run(bundle, tokens()), wanted.numpy(), rtol=0, atol=1e-5)
    table = structures["embedding.weight"]
    layers, bias = bundle.manifest.layers, 40
    assert bundle.manifest.compression is not None
    assert bundle.manifest.compression.by_parameters == pytest.approx(
        (40 * 32 + layers[1].dense_parameters + bias) / (table.parameters + layers[1].parameters + bias)
    )


def test_a_format_is_forced() -> None:
    model = doped(hidden=32)
    bundle = tvm_doping.compile(model, "x86-64-v3", force={"format": "csr"})
    assert {layer.format for layer in bundle.manifest.layers} == {"csr"}


def test_a_format_that_no_schedule_accepts() -> None:
    with pytest.raises(ScheduleError, match="avx512"):
        tvm_doping.compile(doped(), "x86-64-v3", force={"format": "perm32"})


def test_results_that_differ_are_refused() -> None:
    with pytest.raises(DopingError, match=r"compiled model.*PyTorch's values within"):
        tvm_doping.compile(doped(), tolerance=0.0)


@pytest.mark.parametrize(
    ("model", "options", "error"),
    [
        ("no/such/folder", {}, CheckpointError),
        (42, {}, InvalidInput),
        (Tagger(), {"batch": 0}, InvalidInput),
        (Tagger(), {"steps": 0}, InvalidInput),
        (Tagger(), {"tolerance": -1}, InvalidInput),
        (Tagger(), {"tolerance": float("nan")}, InvalidInput),
        (Tagger(), {"example": torch.zeros(2, 2)}, InvalidInput),
        (nn.Bilinear(2, 3, 4), {}, InvalidInput),
    ],
    ids=[
        "no folder",
        "no model",
        "no batch",
        "no steps",
        "negative",
        "nan",
        "floats for tokens",
        "no example",
    ],
)
def test_what_is_wrong_is_said(model: Any, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        tvm_doping.compile(model, **options)


def test_an_unfinished_annealing_and_weights_that_are_no_numbers() -> None:
    model = doped(hidden=32)
    models.Annealing(model, start=0, end=9)
    with pytest.warns(UnfinishedWarning, match="rnn.weight_ih_l0") as caught:
        tvm_doping.compile(model)
    assert caught[0].filename == __file__
    model.output.bias.data[0] = torch.nan
    with pytest.raises(InvalidInput, match=r"weight output\.bias"):
        tvm_doping.compile(model)


def test_a_record_is_used_without_being_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setenv("TVM_DOPING_RECORDS", str(tmp_path))
    model, target = doped(hidden=32), targets.resolve("auto")
    found = {
        name: weight.structure(original(module, name)) for _, module, name, weight in doped_weights(model)
    }
    structures = [found[f"weight_{side}_l0"] for side in ("ih", "hh")]
    layers = dict(zip(("input", "recurrent"), map(schedules.layer_of, structures), strict=True))
    predicted = schedules.choose_lstm(*structures, reverse=False, target=target)
    choice = choice_of(predicted)
    numbers = choice.numbers.model_copy(update={"steps": 2 * choice.numbers.lanes})
    made = Record(
        key=key_of(layers, 1),
        choice=choice.model_copy(update={"numbers": numbers}),
        us={1: 3.0},
        heuristic_us={1: 4.0},
        trials=5,
        created="now",
    )
    device = Device(target=target.name, cpu="a CPU", cores=1, l1=target.l1, l2=target.l2, l3=target.l3)
    save(tmp_path, device, "lstm", [made])
    manifest = tvm_doping.compile(model).manifest
    layer = manifest.layers[1]
    assert layer.plan["config"]["steps"] == 2 * target.lanes
    assert manifest.records == (layer.plan["record"],) and "best of 5 on a CPU" in layer.reason
    assert tvm_doping.compile(model, records=None).manifest.records == ()
    with pytest.raises(RecordError, match="no folder"):
        tvm_doping.compile(model, records=tmp_path / "none")
