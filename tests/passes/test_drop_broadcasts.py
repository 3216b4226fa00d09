"""Factors that PyTorch repeated are multiplied as they are, where the product has the same shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import tvm_ffi
from torch import nn
from torch.nn import functional

from tests.frontend.running import check
from tvm_doping._tvm import bindings, op_name
from tvm_doping.frontend import import_model
from tvm_doping.passes import Context, pipeline, run_passes
from tvm_doping.passes.drop_broadcasts import DropBroadcasts
from tvm_doping.targets import resolve


class Applies(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.function = nn.Parameter(torch.randn(5, 4)), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.weight)


def broadcasts(function: Any, *shape: int) -> int:
    """How many broadcasts are left; the module computes the same, and the pass does nothing twice."""
    imported = import_model(Applies(function), torch.randn(shape))
    context = Context(target=resolve("x86-64-v2"), names=imported.names)
    mod = DropBroadcasts(context)(imported.mod)
    assert tvm_ffi.structural_equal(DropBroadcasts(context)(mod), mod)
    check(imported, mod, context, ((3, 2), (1, 1), (2, 3)))
    return [op_name(getattr(b, "value", None)) for b in bindings(mod["main"])].count("relax.broadcast_to")


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: functional.linear(x.transpose(0, 1), w),
        lambda x, w: torch.bmm(x, w.T.expand(x.shape[0], 4, 5)),
        lambda x, w: torch.matmul(x.transpose(0, 1), x.permute(1, 2, 0)),
        lambda x, w: torch.matmul(w, x.transpose(1, 2)),
    ],
    ids=["a linear layer", "repeated by hand", "two inputs", "the weight first"],
)
def test_dropped(function: Any) -> None:
    assert broadcasts(function, 3, 2, 4) == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: torch.bmm(w.expand(7, 5, 4), x.sum((0, 1)).reshape(1, 4, 1).expand(7, 4, 1)),
        lambda x, w: x.expand(3, -1, -1, -1) + w[0],
    ],
    ids=["a product that is repeated", "no product"],
)
def test_left(function: Any) -> None:
    assert broadcasts(function, 3, 2, 4) > 0


def test_a_linear_layer_of_a_permuted_input_is_one() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.output = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.output(torch.relu(self.lstm(x)[0]))

    imported = import_model(Model().eval(), torch.randn(2, 4, 3))
    context = Context(target=resolve("x86-64-v2"), names=imported.names)
    mod = run_passes(imported.mod, pipeline(context))
    assert "doping_output" in [gv.name_hint for gv in mod.get_global_vars()]
    check(imported, mod, context)
