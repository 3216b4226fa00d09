"""What a model has beside its layers, through TVM's own functions as we lower them, against PyTorch; T and N symbolic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import tvm_ffi
from torch import nn
from torch.nn import functional

from tests.frontend.running import Program, close, inputs
from tests.kernels.conftest import target_or_skip
from tvm_doping._tvm import te, tirx, tvm
from tvm_doping.frontend import import_model
from tvm_doping.kernels import lowering, traced
from tvm_doping.passes import Context, pipeline, run_passes

# Fills neither vectors nor blocks of them: 4 x 8 + 8 + 5. And one that is shorter than a vector.
WIDE, NARROW = 45, 3
SIZES = ((1, 1), (1, 2), (2, 3), (7, 1), (19, 2), (40, 1))
FUNCTIONS: dict[str, Any] = {
    "layer norm": lambda m, x: functional.layer_norm(x, x.shape[-1:], m.weight[0], m.weight[1]),
    "batch norm": lambda m, x: m.norm(x.permute(1, 2, 0)).permute(2, 0, 1),
    "residual": lambda m, x: x + torch.relu(x * m.weight[0] + m.weight[1]),
    "gelu": lambda m, x: functional.gelu(x),
    "gelu by tanh": lambda m, x: functional.gelu(x, approximate="tanh"),
    "silu": lambda m, x: functional.silu(x.transpose(0, 1)).transpose(0, 1),
    "elu": lambda m, x: functional.elu(x),
    "gates": lambda m, x: (g := torch.sigmoid(x * m.weight[0])) * torch.tanh(x) + (1 - g) * x,
    "sum over time": lambda m, x: x.sum(0),
    "mean over time and all": lambda m, x: x - x.mean(0) - x.mean(),
    "sum over features": lambda m, x: x * x.sum(-1, keepdim=True),
    "largest and smallest": lambda m, x: x.amax(-1, keepdim=True) - x.amin(0),
    "largest over time": lambda m, x: x.max(0)[0] + x.max(0)[1],
    "norm of exponentials": lambda m, x: torch.exp(x).sum(-1).sqrt(),
    "deviation": lambda m, x: x.var(-1, keepdim=True) + x,
    "softmax over time": lambda m, x: (torch.softmax(x, 0) * x).sum(0),
    "concatenated features": lambda m, x: torch.cat([x, 2 * x, x[..., :2]], -1),
    "concatenated streams": lambda m, x: torch.cat([x, x.flip(0), torch.tanh(x)], 1),
    "activated when concatenated": lambda m, x: torch.tanh(torch.cat([x, torch.sigmoid(x)], -1)),
    "a value used twice": lambda m, x: (y := torch.exp(-(x**2)) + m.weight[0]) * torch.sigmoid(y),
    "one value for all": lambda m, x: x * torch.tanh(m.weight[0] * x.mean(0)),
    "padded": lambda m, x: functional.pad(x, (2, 1)),
    "dot product attention": lambda m, x: (
        torch.softmax(x.transpose(0, 1) @ x.permute(1, 2, 0) / 7, -1) @ x.transpose(0, 1)
    ),
    "a product over one": lambda m, x: x[..., :1] @ m.weight[:1],
    "products of features": lambda m, x: torch.einsum("tnh,tnk->nhk", x, x),
    "convolution": lambda m, x: m.conv(x.permute(1, 2, 0)).permute(2, 0, 1),
    "pooling": lambda m, x: functional.avg_pool1d(x.permute(1, 2, 0), 3, padding=1).permute(2, 0, 1),
}


class Applies(nn.Module):
    def __init__(self, function: Any, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.function = nn.Parameter(torch.randn(2, width)), function
        self.norm, self.conv = nn.BatchNorm1d(width), nn.Conv1d(width, 5, 3, padding=1)
        for statistic in (self.norm.running_mean, self.norm.running_var):
            assert statistic is not None
            statistic.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_against_pytorch(function: Any, width: int, target: str) -> None:
    machine = target_or_skip(target)
    imported = import_model(Applies(function, width).eval(), torch.randn(5, 2, width))
    context = Context(target=machine, names=imported.names)
    program = Program(run_passes(imported.mod, pipeline(context)), imported, context)
    for steps, streams in SIZES:
        arrays = inputs(imported, steps, streams, seed=steps)
        outputs, state = imported.reference(arrays)
        largest = max(1.0, *(float(abs(y).max()) for y in outputs.values()))
        close(program(arrays), {**outputs, **state}, 2e-6 * largest)


def loops(*tensors: Any) -> tuple[list[int], str]:
    """Kinds of the loops that a function of TVM's becomes, and its text."""
    function = te.create_prim_func(list(tensors)).with_attr("global_symbol", "f")
    module = lowering.in_vectors(tvm.IRModule({"f": function}))
    kinds: list[int] = []
    tvm_ffi.structural_walk(module["f"].body, (tirx.For, lambda loop: kinds.append(int(loop.kind))))
    return kinds, module["f"].script()


def test_a_row_is_summed_in_vectors() -> None:
    n = te.var("n", "int64")
    x = te.placeholder((n, n), name="x")
    k = te.reduce_axis((0, n), name="k")
    kinds, _ = loops(x, te.compute((n,), lambda i: te.sum(x[i, k], axis=k), name="y"))
    assert tirx.ForKind.VECTORIZED in kinds
    kinds, _ = loops(x, te.compute((n,), lambda i: te.sum(x[k, i], axis=k), name="y"))
    assert tirx.ForKind.VECTORIZED not in kinds  # LLVM's, over i


def test_a_sum_of_integers_stays() -> None:
    x = te.placeholder((5, 100), "int32", name="x")
    k = te.reduce_axis((0, 100), name="k")
    kinds, _ = loops(x, te.compute((5,), lambda i: te.sum(x[i, k], axis=k), name="y"))
    assert kinds == [tirx.ForKind.SERIAL] * 2


def test_a_chain_is_one_loop() -> None:
    x = te.placeholder((20, 30), name="x")
    y = te.compute((30, 20), lambda i, j: x[j, i] + 1, name="y")
    z = te.compute((20, 30), lambda i, j: tirx.tanh(y[j, i] * 3), name="z")
    kinds, text = loops(x, te.compute((20, 30), lambda i, j: z[i, j] * x[i, j], name="w"))
    assert len(kinds) == 2
    assert "alloc_buffer" not in text


def test_a_dear_value_is_computed_once() -> None:
    x = te.placeholder((30,), name="x")
    y = te.compute((30,), lambda i: tirx.tanh(x[i]), name="y")
    assert "alloc_buffer" in loops(x, te.compute((20, 30), lambda i, j: y[j] * x[j], name="z"))[1]


@pytest.mark.parametrize("limit", [0, 7, 20, 30], ids=lambda n: f"up to {n}")
def test_a_condition_on_the_loop_is_gone(limit: int) -> None:
    x = te.placeholder((20,), name="x")
    y = te.compute((20,), lambda i: tirx.if_then_else(i < limit, x[i], x[19 - i]), name="y")
    assert "if_then_else" not in loops(x, y)[1]


def test_a_condition_on_values_stays() -> None:
    x = te.placeholder((20,), name="x")
    y = te.compute((20,), lambda i: tirx.if_then_else(x[i] < 0, x[i], x[19 - i]), name="y")
    assert "if_then_else" in loops(x, y)[1]


def convolution() -> Any:
    T = te.var("T", "int64")
    x, w = te.placeholder((8, T), name="x"), te.placeholder((6, 8, 3), name="w")
    i, k = te.reduce_axis((0, 8), name="i"), te.reduce_axis((0, 3), name="k")
    padded = te.compute((8, T + 2), lambda i, t: tirx.if_then_else((t > 0) & (t <= T), x[i, t - 1], 0.0))
    y = te.compute((6, T), lambda o, t: te.sum(padded[i, t + k] * w[o, i, k], axis=[i, k]), name="y")
    return x, w, y


def test_a_single_step_is_summed_along_what_lies_side_by_side() -> None:
    kinds, text = loops(*convolution())
    assert "if T_1 == T.int64(1)" in text
    assert tirx.ForKind.VECTORIZED in kinds  # over i and k as one; LLVM's, over t, for more steps


def test_axes_of_which_a_value_has_only_one_stay_apart() -> None:
    x, s = te.placeholder((6, 40, 24), name="x"), te.placeholder((24,), name="s")
    i, k = te.reduce_axis((0, 40), name="i"), te.reduce_axis((0, 24), name="k")
    _, text = loops(x, s, te.compute((6,), lambda o: te.sum(x[o, i, k] * s[k], axis=[i, k]), name="y"))
    assert "%" not in text and "floormod" not in text


def test_a_function_with_a_size_among_its_arguments_is_not_of_products() -> None:
    function = tirx.PrimFunc([tirx.Var("T", "int64")], tirx.Evaluate(0))
    assert not traced.multiplies(function)
