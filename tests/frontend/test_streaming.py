"""A model is a stream only where pieces of a sequence, the state carried on, give what all of it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.frontend.running import check, exported
from tvm_doping.errors import InvalidInput, UnsupportedModel
from tvm_doping.frontend import import_model


class Model(nn.Module):
    """`of(self, x)` with some layers to choose from."""

    def __init__(self, of: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.second, self.both = nn.LSTM(6, 8, 2), nn.LSTM(8, 8), nn.LSTM(8, 8, bidirectional=True)
        self.embedding, self.conv = nn.Embedding(11, 6), nn.Conv1d(6, 6, 3, padding=1)
        self.start = nn.Parameter(0.01 * torch.randn(2, 1, 8))
        self.of = of

    def forward(self, x: Tensor) -> Any:
        return self.of(self, x)


class Given(Model):
    """`of(y, h, c)` of an LSTM that is given its state."""

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Any:  # type: ignore[override]
        y, (h, c) = self.rnn(x, (h, c))
        return self.of(y, h, c)


def learned(model: Model, x: Tensor) -> Tensor:
    start = model.start.expand(-1, x.shape[1], -1).contiguous()
    return model.rnn(x, (start, start))[0]


def chained(model: Model, x: Tensor) -> Tensor:
    y, (h, c) = model.rnn(x)
    return model.second(y, (h[1:], c[1:]))[0]


STREAMS: dict[str, Callable[..., Any]] = {
    "all steps": lambda m, x: m.rnn(x)[0],
    "tokens": lambda m, x: m.rnn(m.embedding((x.sum(2) > 0).long()))[0],
    "the last step": lambda m, x: m.rnn(x)[0][-1],
    "steps and streams in one axis": lambda m, x: m.rnn(x)[0].reshape(-1, 8),
    "a softmax over features": lambda m, x: torch.softmax(m.rnn(x)[0], 2),
    "the state too": lambda m, x: m.rnn(x),
}
NO_STREAMS: dict[str, Callable[..., Any]] = {
    "a learned start": learned,
    "a start from another's end": chained,
    "a softmax over time": lambda m, x: torch.softmax(m.rnn(x)[0], 0),
    "a sum over time": lambda m, x: m.rnn(x)[0].cumsum(0),
    "a convolution over time": lambda m, x: m.rnn(m.conv(x.permute(1, 2, 0)).permute(2, 0, 1))[0],
    "time reversed": lambda m, x: m.rnn(x.flip(0))[0],
    "a mean over time": lambda m, x: m.rnn(x)[0].mean(0),
    "the first step": lambda m, x: m.rnn(x)[0][0],
    "both directions after one": lambda m, x: m.both(m.rnn(x)[0])[0],
}


def given(of: Callable[..., Any]) -> Any:
    return import_model(Given(of), (torch.randn(4, 3, 6), torch.randn(2, 3, 8), torch.randn(2, 3, 8)))


@pytest.mark.parametrize("of", STREAMS.values(), ids=STREAMS.keys())
def test_streams(of: Callable[..., Any]) -> None:
    signature = import_model(Model(of), torch.randn(4, 3, 6)).signature
    assert signature.streaming
    assert signature.no_stream == ""
    assert len(signature.state) == 4


@pytest.mark.parametrize("example", [torch.randn(4, 3, 6), torch.zeros(1, 1, 6)], ids=["random", "zeros"])
@pytest.mark.parametrize("of", NO_STREAMS.values(), ids=NO_STREAMS.keys())
def test_no_streams_start_every_run_from_zero(of: Callable[..., Any], example: Tensor) -> None:
    imported = import_model(Model(of), example)
    assert not imported.signature.streaming
    assert imported.signature.no_stream
    assert imported.signature.state == ()
    check(imported)


def test_indices_of_an_embedding() -> None:
    tokens = torch.randint(11, (4, 3))
    assert import_model(Model(lambda m, x: m.rnn(m.embedding(x))[0]), tokens).signature.streaming
    flipped = import_model(Model(lambda m, x: m.rnn(m.embedding(x.flip(0)))[0]), tokens).signature
    assert "off from them taken at once" in flipped.no_stream


def test_without_a_time_axis_there_is_no_stream() -> None:
    assert "time axis" in import_model(nn.Linear(3, 4)).signature.no_stream
    # a fixed number of steps: each run goes on where the last one ended
    fixed = import_model(exported(Model(lambda m, x: m.rnn(x)[0]), (torch.randn(4, 3, 6),))).signature
    assert "time axis" in fixed.no_stream
    assert len(fixed.state) == 4


def test_a_state_in_another_order_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"last 2 outputs.*is given, h, c; got c, h\. Return it in"):
        given(lambda y, h, c: (y, c, h))


def test_a_changed_state_is_an_output() -> None:
    imported = given(lambda y, h, c: (y, h.sigmoid(), c.sigmoid()))
    signature = imported.signature
    assert [spec.name for spec in signature.inputs] == ["x", "h", "c"]
    assert (signature.state, len(signature.outputs), signature.streaming) == ((), 3, False)
    check(imported)


def test_a_state_that_comes_back_by_parts_is_state() -> None:
    for of in (
        lambda y, h, c: (y, torch.stack([h[0], h[1]]), torch.cat([c[:1], c[1:]])),
        lambda y, h, c: (y, h.clamp(-50, 50), c.clamp(-50, 50)),
    ):
        signature = given(of).signature
        assert [spec.name for spec in signature.state] == ["h", "c"]
        assert signature.streaming


def test_a_state_of_the_model_stays_where_it_is_no_stream() -> None:
    signature = given(lambda y, h, c: (y.cumsum(0), h, c)).signature
    assert [spec.name for spec in signature.state] == ["h", "c"]
    assert not signature.streaming


def test_one_tensor_for_both_states() -> None:
    zeros = torch.zeros(2, 3, 8)
    imported = import_model(Given(lambda y, h, c: (y, h, c)), (torch.randn(4, 3, 6), zeros, zeros))
    assert [spec.name for spec in imported.signature.state] == ["h", "c"]
    check(imported)


def test_fewer_time_steps_than_the_input_has() -> None:
    def differences(model: Model, x: Tensor) -> Tensor:
        y = model.rnn(x)[0]
        return y[1:] - y[:-1]

    with pytest.raises(UnsupportedModel, match=r"'output' of the model: needs a shape"):
        import_model(Model(differences), torch.randn(4, 3, 6))


def test_an_example_of_other_sizes() -> None:
    with pytest.raises(InvalidInput, match=r"input of module rnn \(LSTM\): needs input_size 6.*got 5"):
        import_model(Model(lambda m, x: m.rnn(x)[0]), torch.randn(4, 3, 5))
    for shape, needs in (((2, 3, 7), "hidden_size 8"), ((1, 3, 8), "layers 2")):
        with pytest.raises(InvalidInput, match=rf"state h of module rnn \(LSTM\): needs {needs}"):
            import_model(
                Given(lambda y, h, c: (y, h, c)), (torch.randn(4, 3, 6), torch.ones(shape), torch.ones(shape))
            )


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_other_recurrent_layers_need_no_example_to_be_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(UnsupportedModel, match=rf"module lstm \({kind.__name__}\)"):
        import_model(nn.ModuleDict({"lstm": kind(6, 8)}))
