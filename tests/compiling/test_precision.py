"""precision=: weights stored narrow, the cost measured, and the compiled code still held to its own weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import tvm_doping
from tests.passes.models import doped, plain
from tvm_doping import schedules
from tvm_doping.errors import InvalidInput
from tvm_doping.sparsity.values import Precision
from tvm_doping.targets import Target, resolve

RELATIVE = {"fp16": 1e-3, "bf16": 1e-2, "int8": 3e-2}


@pytest.mark.parametrize("precision", RELATIVE)
def test_narrow_weights(precision: Precision) -> None:
    model = doped(hidden=64)
    exact, bundle = tvm_doping.compile(model), tvm_doping.compile(model, precision=precision)
    manifest = bundle.manifest
    assert manifest.precision == precision
    assert bundle.bytes < exact.bytes
    assert {layer.values for layer in manifest.layers} <= {"fp32", precision, f"fp32, {precision}"}
    assert any(0 < layer.rounding < RELATIVE[precision] for layer in manifest.layers)
    # strict against the stored weights; what rounding cost is told apart
    assert manifest.golden_error is not None
    assert manifest.golden_error < 1e-5
    assert set(manifest.precision_error) == {"output.output", "new_state.rnn.l0.h", "new_state.rnn.l0.c"}
    cost = manifest.precision_error["output.output"]
    assert 0 < cost.relative < RELATIVE[precision]
    assert cost.max_abs > manifest.golden_error
    tokens = np.random.default_rng(0).integers(0, 9, (7, 2))
    with bundle.session() as session:
        assert session.verify() < 1e-5
        off = np.abs(session.run(tokens) - model(torch.from_numpy(tokens)).detach().numpy()).max()
    assert 0 < off < 10 * cost.max_abs


def test_exact_is_the_default_and_costs_nothing() -> None:
    manifest = tvm_doping.compile(doped()).manifest
    assert manifest.precision == "exact"
    assert manifest.precision_error == {}
    assert {layer.values for layer in manifest.layers} == {"fp32"}
    assert {layer.rounding for layer in manifest.layers} == {0.0}


def test_dense_weights_are_stored_narrow_too() -> None:
    model = plain()
    exact, half = (tvm_doping.compile(model, precision=p) for p in ("exact", "fp16"))
    assert [layer.values for layer in half.manifest.layers] == ["fp16", "fp16"]
    for before, after in zip(exact.manifest.layers, half.manifest.layers, strict=True):
        assert after.bytes < 0.6 * before.bytes


def test_fp16_without_f16c_stays_fp32_and_says_why() -> None:
    manifest = tvm_doping.compile(plain(), "x86-64-v2", precision="fp16").manifest
    assert {layer.values for layer in manifest.layers} == {"fp32"}
    assert all("f16c" in layer.reason for layer in manifest.layers)


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(InvalidInput, match="exact, fp16, bf16, int8"):
        tvm_doping.compile(plain(), precision="fp8")  # type: ignore[arg-type]


def test_a_format_that_rounds_its_input_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """perm64, by the portable twins of its instructions: compiled code and golden values round alike, but for last bits."""

    def choose(choose: Callable[..., Any]) -> Callable[..., Any]:
        def portable(*weights: Any, target: Target, force: Any, **options: Any) -> Any:
            rich = resolve("x86-64-v4-bf16")
            plan = choose(*weights, target=rich, force={"format": "perm64"}, **options)
            return replace(plan, config=replace(plan.config, portable=True, registers=16))

        return portable

    for name in ("choose_lstm", "choose_linear"):
        monkeypatch.setattr(f"tvm_doping.passes.choose.{name}", choose(getattr(schedules, name)))
    model = doped(hidden=64)
    manifest = tvm_doping.compile(model, "x86-64-v3", precision="bf16").manifest
    assert [layer.format for layer in manifest.layers] == ["perm64", "perm64"]
    largest = max(cost.max_abs for cost in manifest.precision_error.values())
    assert manifest.golden_error is not None
    assert 0 < manifest.golden_error < manifest.tolerance == largest < 0.02
