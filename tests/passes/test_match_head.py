"""What is wanted of logits is taken into their layer's kernel; logits that something else uses are left."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import tvm_ffi
from torch import nn

from tests.frontend.running import check
from tvm_doping._tvm import bindings, dps_call, op_name, text_of
from tvm_doping.frontend import import_model
from tvm_doping.models import dope
from tvm_doping.passes import Context, pipeline
from tvm_doping.passes.match_head import MatchHead
from tvm_doping.passes.scores import add_scores
from tvm_doping.targets import resolve


class Applies(nn.Module):
    """A function of the logits of 23 classes."""

    def __init__(self, function: Any, doped: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.output, self.function = nn.Linear(16, 23), function
        if doped:
            dope(self, compression=3, modules="*")

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.output(x))


TAKEN = {
    "argmax": (lambda y: y.argmax(-1), "argmax"),
    "argmax, its axis kept": (lambda y: y.argmax(y.dim() - 1, keepdim=True), "argmax"),
    "log_softmax": (lambda y: torch.log_softmax(y, -1), "log_softmax"),
    "softmax, and more": (lambda y: torch.softmax(y, -1) * 2, "softmax"),
    "topk": (lambda y: torch.topk(y, 4), "top_k:4"),
    "topk, indices alone": (lambda y: torch.topk(y, 4)[1], "top_k:4"),
    "topk, values alone": (lambda y: torch.topk(y, 4)[0], "top_k:4"),
    "max": (lambda y: y.max(-1)[0], "top_k:1"),
    "another shape": (lambda y: y.reshape(-1, 1, 23).argmax(-1), "argmax"),
}
LEFT = {
    "over rows": lambda y: y.argmax(0),
    "of all": lambda y: y.argmax(),
    "the smallest": lambda y: torch.topk(y, 4, largest=False)[0],
    "logits used too": lambda y: (y, y.argmax(-1)),
    "logits used twice": lambda y: torch.softmax(y, -1) + torch.log_softmax(y, -1),
    "something between": lambda y: torch.relu(y).argmax(-1),
    "another last axis": lambda y: torch.softmax(torch.cat([y, y[..., :1]], -1).reshape(-1, 2, 12), -1),
}


def matched(model: nn.Module, shape: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """The heads of the plans after the pass, and the names of the operators that are left beside the layers."""
    imported = import_model(model.eval(), torch.randn(shape))
    context = Context(target=resolve("x86-64-v3"), names=imported.names)
    mod = imported.mod
    for run in pipeline(context):
        if isinstance(run, MatchHead):
            break
        mod = run(mod)
    after = run(mod)
    assert tvm_ffi.structural_equal(run(after), after)
    check(imported, after, context, ((1, 3), (1, 1)))
    values = [b.value for b in bindings(after["main"])]
    plans = [json.loads(text_of(c[1][0]))["plan"] for c in map(dps_call, values) if c]
    if not any(plan["head"] for plan in plans):
        assert tvm_ffi.structural_equal(after, mod)
    return [plan["head"] for plan in plans], [op_name(value) for value in values]


@pytest.mark.parametrize("shape", [(5, 16), (2, 5, 16)], ids=str)
@pytest.mark.parametrize(("function", "head"), TAKEN.values(), ids=TAKEN.keys())
def test_taken(function: Any, head: str, shape: tuple[int, ...]) -> None:
    found, operators = matched(Applies(function), shape)
    assert found == [head]
    assert not {"relax.argmax", "relax.topk", "relax.nn.softmax", "relax.nn.log_softmax"} & set(operators)


@pytest.mark.parametrize("function", LEFT.values(), ids=LEFT.keys())
def test_left(function: Any) -> None:
    assert matched(Applies(function), (12, 16))[0] == [""]


def test_a_doped_layer() -> None:
    assert matched(Applies(lambda y: y.argmax(-1), doped=True), (2, 5, 16))[0] == ["argmax"]


@pytest.mark.parametrize(
    "function", [lambda y: y.argmax(-1), lambda y: torch.topk(y, 4)], ids=["argmax", "topk"]
)
def test_every_pass(function: Any) -> None:
    imported = import_model(_Tagger(function).eval())
    context = Context(target=resolve("x86-64-v3"), names=imported.names)
    mod = imported.mod
    for run in pipeline(context):
        mod = run(mod)
        assert tvm_ffi.structural_equal(run(mod), mod), f"{type(run).__name__} is not idempotent"
        check(imported, mod, context, ((3, 2), (1, 1), (1, 19)))


class _Tagger(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.output, self.function = nn.LSTM(16, 16), nn.Linear(16, 23), function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.output(self.rnn(x)[0]))


def test_scores_of_indices() -> None:
    imported = import_model(_Tagger(lambda y: (torch.topk(y, 4), y.argmax(-1), torch.sigmoid(y))).eval())
    assert [spec.dtype for spec in imported.signature.outputs] == ["float32", "int64", "int64", "float32"]
    mod, scored = add_scores(imported.mod)
    assert scored == [1, 2]
    results = imported.mod["main"].ret_ty.fields
    assert [list(map(str, ty.shape)) for ty in mod["main"].ret_ty.fields[len(results) :]] == [
        list(map(str, results[3].shape))
    ] * 2
    arrays = {**imported.example}
    for spec in imported.signature.state:
        arrays[spec.name] = torch.zeros(3, 16).numpy()
    outputs, _, scores = imported.reference.run(arrays)
    assert set(scores) == {"output_1", "output_2"}
    assert (scores["output_1"].argmax(-1) == outputs["output_2"]).all()
    torch.testing.assert_close(
        torch.sigmoid(torch.from_numpy(scores["output_2"])), torch.from_numpy(outputs["output_3"])
    )
    plain = import_model(_Tagger(torch.sigmoid).eval())
    same, none = add_scores(plain.mod)
    assert none == [] and same is plain.mod
