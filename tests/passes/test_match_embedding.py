"""Look-ups in doped and in tied tables are found, whatever the rank of the numbers; other look-ups are left."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import tvm_ffi
from torch import nn
from torch.nn import functional

from tests.frontend.running import check
from tvm_doping._tvm import bindings, dps_call, text_of
from tvm_doping.frontend import import_model
from tvm_doping.models import dope
from tvm_doping.passes import REPORT, Context, pipeline
from tvm_doping.passes.match_embedding import MatchEmbedding
from tvm_doping.passes.match_linear import MatchLinear
from tvm_doping.targets import resolve


class Table(nn.Module):
    """What `look_up` does with tokens and a module `table`."""

    def __init__(self, look_up: Any = None, doped: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(24, 16)
        self.look_up = look_up or (lambda table, tokens: table(tokens))
        if doped:
            dope(self, modules="table", compression=3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.look_up(self.table, tokens))


def found(model: nn.Module, tokens: torch.Tensor) -> list[str]:
    """The names of the look-ups that the pass takes; what it gives computes the same, and it gives nothing new twice."""
    imported = import_model(model.eval(), tokens)
    context = Context(target=resolve("x86-64-v3"), names=imported.names)
    mod = MatchEmbedding(context)(imported.mod)
    assert tvm_ffi.structural_equal(MatchEmbedding(context)(mod), mod)
    check(imported, mod, context, ((1, 3), (1, 1)))
    calls = (dps_call(getattr(b, "value", None)) for b in bindings(mod["main"]))
    return [text_of(c[1][2]) for c in calls if c and c[0] == "doping.embedding"]


@pytest.mark.parametrize("shape", [(5,), (5, 2), (5, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_taken(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert found(Table(), torch.randint(24, shape).to(dtype)) == ["table"]


def test_used_twice() -> None:
    model = Table(lambda table, tokens: table(tokens) + table(23 - tokens))
    assert found(model, torch.randint(24, (5, 2))) == ["table", "table.call2"]


@pytest.mark.parametrize(
    ("model", "tokens"),
    [
        (Table(doped=False), torch.randint(24, (5, 2))),
        (Table(lambda table, tokens: table.weight[2].sum() * tokens), torch.randint(24, (5, 2))),
        (Table(lambda table, x: functional.linear(x, table.weight)), torch.randn(5, 16)),
    ],
    ids=["a constant table", "a fixed row", "a product"],
)
def test_left(model: nn.Module, tokens: torch.Tensor) -> None:
    assert found(model, tokens) == []


class Tied(nn.Module):
    """The table is also what `weight` says of it: a linear layer's weight, with a bias."""

    def __init__(self, weight: Any = lambda w: w, structure: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.lstm, self.output = nn.Embedding(24, 16), nn.LSTM(16, 16), nn.Linear(16, 24)
        self.output.weight, self.weight = self.table.weight, weight
        if structure is not None:
            dope(self, structure=structure, modules=["table", "output"], compression=3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(self.table(tokens))
        return functional.linear(y, self.weight(self.output.weight), self.output.bias)


def test_a_constant_table_that_is_a_linear_layers_weight() -> None:
    imported = import_model(Tied().eval())
    context = Context(target=resolve("x86-64-v3"), names=imported.names)
    mod = MatchEmbedding(context)(MatchLinear(context)(imported.mod))
    assert tvm_ffi.structural_equal(MatchEmbedding(context)(mod), mod)
    calls = [c for b in bindings(mod["main"]) if (c := dps_call(getattr(b, "value", None)))]
    assert [text_of(c[1][2]) for c in calls if c[0] == "doping.embedding"] == ["table"]
    check(imported, mod, context, ((3, 2), (1, 1)))


@pytest.mark.parametrize(
    ("weight", "packed"),
    [(lambda w: w, True), (lambda w: 2 * w, None)],
    ids=["tied", "another weight, computed from it"],
)
def test_rows_are_read_from_the_same_weight_only(weight: Any, packed: bool | None) -> None:
    imported = import_model(Tied(weight).eval())
    context = Context(target=resolve("x86-64-v3"), names=imported.names)
    mod = imported.mod
    for run in pipeline(context):
        mod = run(mod)
        check(imported, mod, context, ((3, 2), (1, 1)))
    table = [
        json.loads(f.attrs[REPORT])["plan"]
        for _, f in mod.functions_items()
        if f.attrs and REPORT in f.attrs and json.loads(f.attrs[REPORT])["op"] == "embedding"
    ]
    assert [plan["packed"] for plan in table] == ([] if packed is None else [packed])
    assert ("table.weight" in context.weights) is (packed is None)


@pytest.mark.parametrize("structure", ["kronecker", "low_rank", "hybrid", "zero"])
def test_every_pass_of_a_tied_table(structure: Any) -> None:
    """One array each, which the layer gives its name."""
    imported = import_model(Tied(structure=structure).eval())
    context = Context(target=resolve("x86-64-v3"), names=imported.names)
    mod = imported.mod
    for run in pipeline(context):
        mod = run(mod)
        assert tvm_ffi.structural_equal(run(mod), mod), f"{type(run).__name__} is not idempotent"
        check(imported, mod, context, ((3, 2), (1, 1)))
    arrays = [value.numpy() for value in context.weights.values()]
    assert len({(a.dtype, a.shape, a.tobytes()) for a in arrays}) == len(arrays)
    assert {name for name in context.weights if name.startswith("table.")} <= {
        "table.V.rows",
        "table.S.places",
    }


@pytest.mark.parametrize("structure", ["kronecker", "low_rank", "hybrid", "zero"])
def test_every_pass(structure: Any) -> None:
    torch.manual_seed(0)
    model = dope(
        nn.Sequential(nn.Embedding(24, 16), nn.LSTM(16, 8)), structure=structure, compression=3, modules="*"
    )
    imported = import_model(model.eval())
    context = Context(target=resolve("x86-64-v3"), names=imported.names)
    mod = imported.mod
    for run in pipeline(context):
        mod = run(mod)
        assert tvm_ffi.structural_equal(run(mod), mod), f"{type(run).__name__} is not idempotent"
        check(imported, mod, context, ((3, 2), (1, 1)))
    assert not any(value.shape == [24, 16] for value in context.weights.values())
