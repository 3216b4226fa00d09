"""Heads of what no layer makes are kernels of their own; other axes, and constants, are left to TVM."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import tvm_ffi
from torch import nn

import tvm_doping
from tests.frontend.running import check
from tvm_doping._tvm import tirx
from tvm_doping.frontend import import_model
from tvm_doping.passes import Context
from tvm_doping.passes.lower_heads import LowerHeads
from tvm_doping.targets import resolve


class Applies(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.function = nn.Parameter(torch.randn(4, 23)), function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(torch.tanh(x), self.table)


def kernels(function: Any, *shape: int) -> int:
    """How many heads the pass lowers; what it gives computes the same, and it finds nothing twice."""
    imported = import_model(Applies(function).eval(), torch.randn(shape))
    context = Context(target=resolve("x86-64-v3"), names=imported.names)
    mod = LowerHeads(context)(imported.mod)
    assert tvm_ffi.structural_equal(LowerHeads(context)(mod), mod)
    check(imported, mod, context, ((1, 19), (1, 1)))
    return sum(isinstance(f, tirx.PrimFunc) for _, f in mod.functions_items())


@pytest.mark.parametrize("shape", [(3, 23), (3, 2, 23), (3, 5)], ids=str)
@pytest.mark.parametrize(
    "function",
    [
        lambda y, t: torch.log_softmax(y, -1),
        lambda y, t: torch.softmax(y, y.dim() - 1) * 2,
        lambda y, t: y.argmax(-1),
        lambda y, t: y.argmax(-1, keepdim=True),
        lambda y, t: torch.topk(y, 4),
        lambda y, t: y.max(-1)[0],
    ],
    ids=["log_softmax", "softmax", "argmax", "argmax, its axis kept", "topk", "max"],
)
def test_taken(function: Any, shape: tuple[int, ...]) -> None:
    assert kernels(function, *shape) == 1


def test_several() -> None:
    assert kernels(lambda y, t: (torch.softmax(y, -1), y.argmax(-1), torch.topk(y, 3)[0]), 3, 23) == 3


@pytest.mark.parametrize(
    "function",
    [
        lambda y, t: torch.softmax(y, 1),
        lambda y, t: y.argmax(1),
        lambda y, t: torch.topk(y, 2, largest=False)[0],
        lambda y, t: y + torch.softmax(t, -1).sum(0),
    ],
    ids=["another axis", "argmax over another", "the smallest", "a constant"],
)
def test_left(function: Any) -> None:
    assert kernels(function, 3, 4, 23) == 0


def test_a_deployed_topk_needs_no_library_of_tvm() -> None:
    bundle = tvm_doping.compile(Applies(lambda y, t: torch.topk(y, 4)), example=torch.randn(3, 23))
    assert b"tvm.contrib" not in bundle.library
