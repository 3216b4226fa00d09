"""Exported programs: those made elsewhere, and the symbols of those made here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from tests.frontend.running import check, exported, inputs
from tvm_doping._tvm import bindings, dps_call, text_of
from tvm_doping.errors import InvalidInput
from tvm_doping.frontend import import_model


class Model(nn.Module):
    """An LSTM between an embedding and a linear layer."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.rnn = nn.LSTM(6, 8, **options)
        self.output = nn.Linear(16 if options.get("bidirectional") else 8, 11)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        y, _ = self.rnn(self.embedding(tokens))
        return self.output(y)


def layers(mod: Any) -> list[tuple[str, int]]:
    found = (dps_call(getattr(b, "value", None)) for b in bindings(mod["main"]))
    return [(text_of(c[1][8]), int(c[1][7])) for c in found if c and c[0] == "doping.lstm"]


@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2}, {"bidirectional": True, "num_layers": 2}, {"batch_first": True, "bias": False}],
    ids=str,
)
def test_a_program_that_holds_aten_lstm_gives_the_same_layers(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Model(**options).eval()
    tokens = torch.randint(11, (5, 4))
    batch = 0 if options.get("batch_first") else 1
    program = exported(model, (tokens,), dynamic_shapes=({batch: Dim.AUTO},))
    assert any(node.target is torch.ops.aten.lstm.input for node in program.graph.nodes)
    imported, whole = import_model(program), import_model(model)
    assert layers(imported.mod) == layers(whole.mod)
    assert imported.signature.state == whole.signature.state
    assert not imported.signature.streaming  # its number of steps is fixed
    steps = 4 if options.get("batch_first") else 5
    assert imported.signature.inputs[0].shape == (
        ("N", steps) if options.get("batch_first") else (steps, "N")
    )
    check(imported, sizes=((steps, 3), (steps, 1)))
    arrays = inputs(imported, steps, 3)
    ours, theirs = whole.reference(arrays), imported.reference(arrays)
    for mine, other in zip(ours, theirs, strict=True):
        for name in mine:
            torch.testing.assert_close(mine[name], other[name], rtol=0, atol=1e-6)


def test_a_saved_program(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = Model().eval()
    path = tmp_path / "model.pt2"
    program = exported(model, (torch.randint(11, (5, 4)),), dynamic_shapes=({1: Dim.AUTO},))
    torch.export.save(program, path)
    imported = import_model(torch.export.load(path))
    assert layers(imported.mod) == [("rnn.l0", 0)]
    check(imported, sizes=((5, 2),))


def test_the_table_that_tokens_index_is_known() -> None:
    imported = import_model(Model())
    assert imported.signature.inputs[0].below == 11
    assert imported.signature.inputs[0].dtype == "int64"
    assert imported.signature.time_axis == 0
    assert import_model(nn.LSTM(3, 4, batch_first=True)).signature.time_axis == 1


def test_a_model_without_time() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    imported = import_model(model)
    assert imported.signature.inputs[0].shape == ("N", 5)
    assert imported.signature.time_axis is None
    assert imported.signature.state == ()
    check(imported)


class Select(nn.Module):
    """Some time steps of an LSTM's output."""

    def __init__(self, take: Any) -> None:
        super().__init__()
        self.rnn, self.take = nn.LSTM(4, 6), take

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.take(self.rnn(x)[0])


@pytest.mark.parametrize(
    "take",
    [
        lambda y: y[-1],
        lambda y: y[0],
        lambda y: y[:, -1],
        lambda y: y[-1:],
        lambda y: y[:-1],
        lambda y: y[1:],
        lambda y: y.mean(0),
        lambda y: y.flip(0),
        lambda y: torch.cat([y[0], y[-1]], -1),
        lambda y: y.transpose(0, 1),
    ],
    ids=[
        "last",
        "first",
        "last stream",
        "from the last",
        "to the last",
        "from the second",
        "mean",
        "reversed",
        "ends",
        "batch first",
    ],
)
def test_parts_of_a_sequence(take: Any) -> None:
    """TVM's importer takes y[-1] for the memory before y: that must not come back."""
    torch.manual_seed(0)
    check(import_model(Select(take)), sizes=((5, 2), (3, 4)))


def test_two_sequences_of_different_lengths() -> None:
    class Translate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.source, self.target = nn.LSTM(4, 6), nn.LSTM(3, 6)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            _, state = self.source(a)
            return self.target(b, state)[0]

    torch.manual_seed(0)
    imported = import_model(Translate(), (torch.randn(5, 2, 4), torch.randn(3, 2, 3)))
    assert [t.shape for t in imported.signature.inputs] == [("T", "N", 4), ("T1", "N", 3)]
    # the second one's state is no zero: it stays inside
    assert [t.name for t in imported.signature.state] == ["source.l0.h", "source.l0.c"]


def test_an_example_that_does_not_fit() -> None:
    with pytest.raises(InvalidInput, match="example"):
        import_model(Model(), torch.randn(3, 3))


def test_no_example_can_be_guessed() -> None:
    class Odd(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    with pytest.raises(InvalidInput, match=r"Pass example="):
        import_model(Odd())
    check(import_model(Odd(), (torch.randn(3, 2), torch.randn(3, 2))), sizes=((1, 3),))


class Autoencoder(nn.Module):
    """The last hidden state repeated over T: an axis of size 1 that is repeated as often as a symbol says."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(4, 6, batch_first=True), nn.LSTM(6, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, (h, _) = self.encoder(x)
        return self.decoder(h[-1].unsqueeze(1).repeat(1, x.size(1), 1))[0]


def test_a_state_repeated_over_time() -> None:
    torch.manual_seed(0)
    check(import_model(Autoencoder()), sizes=((5, 2), (1, 1)))


@pytest.mark.parametrize("repeats", [(2, 3), (2, 1, 3), (1, 1), (3, 2, 1, 1)], ids=str)
def test_repeats(repeats: tuple[int, ...]) -> None:
    class Repeats(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.repeat(*repeats)

    check(import_model(Repeats(), torch.randn(3, 2)), sizes=((1, 3), (1, 1)))


def test_steps_written_out() -> None:
    """A loop over time in Python fixes T, not N."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = c = x.new_zeros(x.shape[1], 6)
            for step in x:
                h, c = self.cell(step, (h, c))
            return h

    torch.manual_seed(0)
    imported = import_model(Cell(), torch.randn(3, 2, 4))
    assert imported.signature.inputs[0].shape == (3, "N", 4)
    check(imported, sizes=((3, 2), (3, 1)))
