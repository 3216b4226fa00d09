"""What cannot be imported is refused by name, with its place in the model and what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from tests.frontend.running import exported
from tvm_doping.errors import UnsupportedModel
from tvm_doping.frontend import import_model


class Around(nn.Module):
    """A module at the path `encoder.inner`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"inner": inner})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.encoder["inner"](x)
        return y[0] if isinstance(y, tuple) else y


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(x, torch.full((x.shape[1],), x.shape[0]))
        return self.rnn(packed)[1][0]


class Inverse(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv(x)


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


def test_a_projection() -> None:
    with pytest.raises(UnsupportedModel, match=r"encoder\.inner \(LSTM\).*proj_size = 3"):
        import_model(Around(nn.LSTM(6, 8, proj_size=3)))


def test_a_projection_in_an_exported_program() -> None:
    program = exported(Around(nn.LSTM(6, 8, proj_size=3)), (torch.randn(4, 2, 6),))
    with pytest.raises(UnsupportedModel, match=r"encoder\.inner.*proj_size"):
        import_model(program)


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_other_recurrent_layers(kind: type[nn.Module]) -> None:
    with pytest.raises(UnsupportedModel, match=rf"encoder\.inner \({kind.__name__}\).*nn\.LSTM"):
        import_model(Around(kind(6, 8)), torch.randn(4, 2, 6))


def test_a_gru_in_an_exported_program() -> None:
    program = exported(Around(nn.GRU(6, 8)), (torch.randn(4, 2, 6),))
    with pytest.raises(UnsupportedModel, match=r"gru.*encoder\.inner.*Use an nn\.LSTM"):
        import_model(program)


def test_packed_sequences() -> None:
    with pytest.raises(UnsupportedModel, match=r"module rnn \(LSTM\).*PackedSequence.*Pad the sequences"):
        import_model(Packs(), torch.randn(4, 2, 6))


def test_an_operator_that_nobody_knows() -> None:
    with pytest.raises(UnsupportedModel, match=r"linalg.*encoder\.inner \(Inverse\)"):
        import_model(Around(Inverse()), torch.randn(3, 3))


def test_control_flow_that_depends_on_values() -> None:
    with pytest.raises(UnsupportedModel, match=r"torch\.export"):
        import_model(Around(Branches()), torch.randn(3, 3))


def test_other_precisions() -> None:
    with pytest.raises(
        UnsupportedModel, match=r"weight_ih_l0 of module encoder\.inner.*float64.*model\.float"
    ):
        import_model(Around(nn.LSTM(6, 8)).double(), torch.randn(4, 2, 6).double())


def test_an_input_that_is_no_tensor() -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, factor: int) -> torch.Tensor:
            return x * factor

    with pytest.raises(UnsupportedModel, match=r"an input of the model.*int"):
        import_model(Scaled(), (torch.randn(3, 2), 3))
