"""Choices from records: what was measured goes before what is predicted, and says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kernels.conftest import check_lstm, target_or_skip
from tests.kernels.test_lstm import doped
from tests.records.making import DEVICE
from tvm_doping import schedules
from tvm_doping.records import Book, Choice, Record, RecordFile, save
from tvm_doping.schedules.layer import Layer
from tvm_doping.schedules.recorded import apply, choice_of, key_of

OTHER = {"csr": {"multiple": 2}, "sell16": {"window": 16}, "block4": {"each": 1}, "dense": {}}


def layers(w: tuple[Any, Any]) -> dict[str, Layer]:
    return dict(zip(("input", "recurrent"), (schedules.layer_of(one) for one in w), strict=True))


def changed(choice: Choice, format: str) -> Choice:
    """The same layer with another format, order of the Kronecker product and numbers."""
    ways = {
        name: way.model_copy(
            update={
                "format": format,
                "params": OTHER[format],
                "order": "right" if way.order == "left" else "left",
            }
        )
        for name, way in choice.ways.items()
    }
    lanes = choice.numbers.lanes
    numbers = choice.numbers.model_copy(update={"steps": 2 * lanes, "steps_from": 3, "tile": 2 * lanes})
    return Choice(ways=ways, numbers=numbers)


def book(w: tuple[Any, Any], choice: Choice, target: Any) -> Book:
    device = DEVICE.model_copy(
        update={"target": target.name, "l1": target.l1, "l2": target.l2, "l3": target.l3}
    )
    made = Record(
        key=key_of(layers(w), 1),
        choice=choice,
        us={1: 10.0, 35: 200.0},
        heuristic_us={1: 12.0, 35: 210.0},
        trials=64,
        created="2026-01-01T00:00:00+00:00",
    )
    return Book((RecordFile(device=device, operation="lstm", records=(made,)),))


@pytest.mark.parametrize("format", sorted(OTHER))
def test_a_record_is_taken_and_computes_the_same(format: str) -> None:
    target, w = target_or_skip("x86-64-v3"), doped("kronecker", 0.25)
    predicted = schedules.choose_lstm(*w, reverse=True, target=target)
    wanted = changed(choice_of(predicted), format)
    plan = schedules.choose_lstm(*w, reverse=True, target=target, records=book(w, wanted, target))
    expected = wanted
    if format == "dense":  # no factors, so no order
        ways = {name: way.model_copy(update={"order": "left"}) for name, way in wanted.ways.items()}
        expected = wanted.model_copy(update={"ways": ways})
    assert choice_of(plan) == expected
    assert (
        plan.record.startswith("tuned: 10 us at T = 1 (predicted choice 12)") and plan.record in plan.reason
    )
    assert plan.input.alternatives == predicted.input.alternatives
    assert type(plan).from_json(plan.to_json()) == plan
    check_lstm(w, plan, target, [(1, 1), (39, 1), (2, 37)])


def test_what_was_chosen_can_be_applied_again() -> None:
    target, w = target_or_skip("x86-64-v3"), doped("kronecker", 0.25)
    for force in (None, {"format": "block4"}):
        plan = schedules.choose_lstm(*w, reverse=False, target=target, force=force)
        again = apply(plan, layers(w), choice_of(plan))
        assert choice_of(again) == choice_of(plan) and again.config == plan.config


def test_forced_choices_other_targets_and_layers_far_away_do_not_take_it() -> None:
    target, w = target_or_skip("x86-64-v3"), doped("kronecker", 0.25)
    predicted = schedules.choose_lstm(*w, reverse=False, target=target)
    known = book(w, changed(choice_of(predicted), "sell16"), target)
    options: dict[str, Any] = {"reverse": False, "target": target, "records": known}
    assert schedules.choose_lstm(*w, **options).record
    assert not schedules.choose_lstm(*w, **options, force={"format": "csr"}).record
    assert not schedules.choose_lstm(*w, **options, threads=2).record
    assert not schedules.choose_lstm(*w, **options, precision="fp16").record
    assert not schedules.choose_lstm(*w, **options, batch=4).record
    assert not schedules.choose_lstm(*w, **{**options, "target": replace(target, name="x86-64-v2")}).record
    assert not schedules.choose_lstm(*doped("low_rank", 0.25), **options).record
    nearby = schedules.choose_lstm(*doped("kronecker", 0.22, seed=1), **options)
    assert "nearby" in nearby.record and "nearby" in nearby.reason


def test_a_linear_layer_has_records_too(tmp_path: Path) -> None:
    target, (w, _) = target_or_skip("x86-64-v3"), doped("zero", 0.2)
    plan = schedules.choose_linear(w, target=target)
    layer = {"product": schedules.layer_of(w)}
    choice = choice_of(plan)
    wanted = Choice(
        ways={
            "product": choice.ways["product"].model_copy(update={"format": "csr", "params": {"multiple": 1}})
        },
        numbers=choice.numbers,
    )
    made = Record(
        key=key_of(layer, 1), choice=wanted, us={1: 1.0}, heuristic_us={1: 1.0}, trials=1, created="now"
    )
    device = DEVICE.model_copy(
        update={"target": target.name, "l1": target.l1, "l2": target.l2, "l3": target.l3}
    )
    save(tmp_path, device, "linear", [made])
    taken = schedules.choose_linear(w, target=target, records=Book.of(tmp_path))
    assert choice_of(taken) == wanted and taken.record


@pytest.mark.parametrize("pattern", ["unstructured", "block4", "block16", "nm32"])
def test_patterns_are_recognised(pattern: str) -> None:
    from scipy import sparse as sp

    from tvm_doping import structures
    from tvm_doping.sparsity import PATTERNS

    scores = np.random.default_rng(0).random((64, 64))
    s = sp.csr_array((PATTERNS[pattern](scores, 0.125) * scores).astype("float32"))
    layer = schedules.layer_of(structures.Doped(structures.Zero(s.shape), s))
    key = key_of({"product": layer}, 1)
    assert key.weights["product"].pattern == pattern
    assert (
        key_of({"product": schedules.layer_of(structures.Zero((4, 4)))}, 1).weights["product"].pattern
        == "none"
    )
