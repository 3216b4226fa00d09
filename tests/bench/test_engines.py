"""Every baseline computes what PyTorch computes, its state carried from call to call."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

import torch

from tvm_doping.bench import BASELINES
from tvm_doping.bench.engines import ENGINES, make
from tvm_doping.bench.subject import Subject, subject_of
from tvm_doping.errors import BenchError

pytestmark = pytest.mark.bench


class Tiny(torch.nn.Module):
    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding = torch.nn.Embedding(30, 20)
        self.lstm = torch.nn.LSTM(20, 24, 2, bias=bias, dropout=0.5)
        self.decoder = torch.nn.Linear(24, 30, bias=bias)

    def forward(self, tokens, state=None):
        y, state = self.lstm(self.embedding(tokens), state)
        return self.decoder(y), state


def subject(*, lstm_only: bool = False, bias: bool = True) -> Subject:
    whole, _ = subject_of(Tiny(bias=bias).eval())
    return whole.lstm_only() if lstm_only else whole


def stream_of_torch(model: torch.nn.Module, xs: list[np.ndarray]) -> list[np.ndarray]:
    state, ys = None, []
    with torch.no_grad():
        for x in xs:
            y, state = model(torch.from_numpy(x), state)
            ys.append(y.numpy())
    return ys


@pytest.mark.parametrize("bias", [True, False])
def test_the_dense_module_is_the_model(bias: bool) -> None:
    model = Tiny(bias=bias).eval()
    xs = subject().inputs(4, 2, 3, seed=1)
    for ours, theirs in zip(
        stream_of_torch(subject(bias=bias).module(), xs), stream_of_torch(model, xs), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_lstm_alone_is_the_models_lstm() -> None:
    alone = subject(lstm_only=True)
    xs = alone.inputs(4, 2, 2, seed=1)
    for ours, theirs in zip(
        stream_of_torch(alone.module(), xs), stream_of_torch(Tiny().eval().lstm, xs), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert alone.lstm_weights == 4 * 24 * (20 + 24) + 4 * 24 * (24 + 24)


@pytest.mark.parametrize("lstm_only", [False, True], ids=["model", "lstm"])
@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (5, 1), (1, 3), (4, 2)])
@pytest.mark.parametrize("name", [name for name in BASELINES if name != "tvm-dense"])
def test_a_baseline_equals_pytorch(name: str, steps: int, batch: int, lstm_only: bool) -> None:
    what = subject(lstm_only=lstm_only)
    stream = make(name, what, threads=1).open(steps, batch)
    xs = what.inputs(steps, batch, 3, seed=2)
    expected = stream_of_torch(what.module(), xs)
    for _ in range(2):  # a reset stream repeats itself
        for x, y in zip(xs, expected, strict=True):
            got = stream.call(x)
            if name == "gemv-floor":
                assert got is None
                continue
            assert got is not None
            tolerance = 0.05 if name.endswith("int8") else 2e-6
            np.testing.assert_allclose(got, y, atol=tolerance)
        stream.reset()


def test_the_two_lists_of_baselines_are_one() -> None:
    assert tuple(ENGINES) == BASELINES


def test_an_unknown_baseline_is_named() -> None:
    with pytest.raises(BenchError, match="cuda"):
        make("cuda", subject(), threads=1)


@pytest.mark.parametrize(
    "model",
    [
        torch.nn.Linear(3, 3),
        torch.nn.LSTM(3, 3, bidirectional=True),
        torch.nn.LSTM(3, 3, batch_first=True),
        torch.nn.Sequential(torch.nn.LSTM(3, 3), torch.nn.LSTM(3, 3)),
    ],
    ids=["linear", "bidirectional", "batch_first", "two"],
)
def test_a_model_of_another_kind_is_refused(model: torch.nn.Module) -> None:
    with pytest.raises(BenchError, match=r"one unidirectional nn\.LSTM"):
        subject_of(model)
