"""Every form of nn.LSTM arrives in Relax, and computes what PyTorch computes, for any T and N."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.frontend.running import Program, check, close, inputs
from tvm_doping._tvm import bindings, dps_call, text_of
from tvm_doping.frontend import import_model

FORMS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "three layers": {"num_layers": 3},
    "both directions": {"bidirectional": True},
    "both directions, two layers": {"bidirectional": True, "num_layers": 2},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "batch first, both directions, no bias": {"batch_first": True, "bidirectional": True, "bias": False},
    "dropout": {"num_layers": 2, "dropout": 0.5},
}


class Stack(nn.Module):
    """An nn.LSTM that starts from zero."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


class Stateful(Stack):
    """An nn.LSTM that is given its state."""

    def forward(self, x: torch.Tensor, state: Any) -> Any:  # type: ignore[override]
        return self.rnn(x, state)


def calls(mod: Any) -> list[Any]:
    found = (dps_call(getattr(b, "value", None)) for b in bindings(mod["main"]))
    return [args for call in found if call and call[0] == "doping.lstm" for args in [call[1]]]


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS.keys())
def test_starting_from_zero(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Stack(**options)
    imported = import_model(model)
    assert len(calls(imported.mod)) == model.rnn.num_layers * (2 if model.rnn.bidirectional else 1)
    assert imported.signature.streaming is not model.rnn.bidirectional
    check(imported)
    # and the program that is compared with is the model itself
    arrays = inputs(imported, 4, 3, zero_state=True)
    wanted = model.eval()(torch.from_numpy(arrays["x"])).detach().numpy()
    close({"output": Program(imported.mod, imported)(arrays)["output"]}, {"output": wanted})


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS.keys())
def test_given_its_state(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Stateful(**options)
    layers = model.rnn.num_layers * (2 if model.rnn.bidirectional else 1)
    imported = import_model(model)
    assert [(s.name, s.shape) for s in imported.signature.state] == [
        ("h", (layers, "N", 8)),
        ("c", (layers, "N", 8)),
    ]
    arrays = inputs(imported, 4, 3)
    x, h, c = (torch.from_numpy(arrays[name]) for name in ("x", "h", "c"))
    with torch.no_grad():
        y, (h, c) = model.eval()(x, (h, c))
    close(Program(imported.mod, imported)(arrays), {"output": y.numpy(), "h": h.numpy(), "c": c.numpy()})


def test_one_sequence_without_a_batch() -> None:
    torch.manual_seed(0)
    model = Stack(num_layers=2)
    imported = import_model(model, torch.randn(4, 6))
    assert imported.signature.inputs[0].shape == ("T", 6)
    assert imported.signature.state[0].shape == (1, 8)
    check(imported, sizes=((5, 1), (1, 1)))


@pytest.mark.parametrize("shape", [(1, 1, 6), (7, 1, 6), (1, 4, 6), (4, 4, 6), (6, 8, 6)])
def test_sizes_of_the_example_do_not_matter(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    imported = import_model(Stack(), torch.randn(shape))
    assert imported.signature.inputs[0].shape == ("T", "N", 6)
    check(imported)


def test_an_nn_lstm_itself() -> None:
    torch.manual_seed(0)
    imported = import_model(nn.LSTM(6, 8, 2))
    assert [text_of(args[8]) for args in calls(imported.mod)] == ["lstm.l0", "lstm.l1"]
    check(imported)


def test_names_and_sharing() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({"a": nn.LSTM(6, 6)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner["a"](self.inner["a"](x)[0])[0]

    torch.manual_seed(0)
    imported = import_model(Two())
    assert [text_of(args[8]) for args in calls(imported.mod)] == ["inner.a.l0", "inner.a.call2.l0"]
    assert [s.name for s in imported.signature.state] == [
        "inner.a.l0.h",
        "inner.a.l0.c",
        "inner.a.call2.l0.h",
        "inner.a.call2.l0.c",
    ]
    check(imported)
