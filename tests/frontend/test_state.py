"""What is state, and that a stream in pieces is the stream in one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from tests.frontend.running import Program, check, inputs
from tvm_doping.frontend import import_model


class Model(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, 2, **options)
        self.output = nn.Linear(16 if options.get("bidirectional") else 8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.rnn(x)[0])


class Zeros(Model):
    """The zero state written out, as tutorials do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, c = torch.zeros(2, x.size(1), 8), torch.zeros(2, x.size(1), 8)
        y, _ = self.rnn(x, (h, c))
        return self.output(y)


class Learned(Model):
    """A learned initial state: not zero, so no stream's."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(2, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = self.start.expand(-1, x.shape[1], -1).contiguous()
        return self.output(self.rnn(x, (start, start))[0])


class Used(Model):
    """An input that is an initial state and something else besides."""

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> Any:  # type: ignore[override]
        y, (h_n, _) = self.rnn(x, (h, torch.zeros_like(h)))
        return self.output(y) + h.sum(), h_n


def test_a_stream_in_pieces() -> None:
    torch.manual_seed(0)
    for model in (Model(), Zeros()):
        imported = import_model(model)
        names = [s.name for s in imported.signature.state]
        assert names == ["rnn.l0.h", "rnn.l0.c", "rnn.l1.h", "rnn.l1.c"]
        program = Program(imported.mod, imported)
        arrays = inputs(imported, 6, 2)
        whole = program(arrays)
        first = program({**arrays, "x": arrays["x"][:4]})
        rest = program({"x": arrays["x"][4:], **{name: first[name] for name in names}})
        got = np.concatenate([first["output"], rest["output"]])
        np.testing.assert_allclose(got, whole["output"], rtol=0, atol=1e-6)
        for name in names:
            np.testing.assert_allclose(rest[name], whole[name], rtol=0, atol=1e-6)


def test_both_directions_start_from_zero_each_time() -> None:
    imported = import_model(Model(bidirectional=True))
    assert imported.signature.state == ()
    assert not imported.signature.streaming


def test_a_learned_start_is_no_state() -> None:
    torch.manual_seed(0)
    imported = import_model(Learned())
    assert imported.signature.state == ()
    check(imported)


def test_an_input_with_another_use_is_no_state() -> None:
    torch.manual_seed(0)
    imported = import_model(Used(), (torch.randn(4, 3, 6), torch.randn(2, 3, 8)))
    assert [t.name for t in imported.signature.inputs] == ["x", "h"]
    assert [t.name for t in imported.signature.outputs] == ["output_0", "output_1"]


def test_states_given_one_by_one() -> None:
    class Flat(Model):
        def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> Any:  # type: ignore[override]
            y, (h, c) = self.rnn(x, (h, c))
            return self.output(y), h, c

    torch.manual_seed(0)
    imported = import_model(Flat(), (torch.randn(4, 3, 6), torch.randn(2, 3, 8), torch.randn(2, 3, 8)))
    assert [(t.name, t.shape) for t in imported.signature.state] == [("h", (2, "N", 8)), ("c", (2, "N", 8))]
    assert [t.name for t in imported.signature.outputs] == ["output"]
    check(imported)


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = Model(dropout=0.5)
    model.output.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(4, 3, 6)
    wanted = model.eval()(x)
    model.train()
    model.output.eval()
    import_model(model)
    assert model.training
    assert model.rnn.training
    assert not model.output.training
    assert "forward" not in vars(model.rnn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.rnn._flat_weights[0] is model.rnn.weight_ih_l0
    torch.testing.assert_close(model.eval()(x), wanted, rtol=0, atol=0)
