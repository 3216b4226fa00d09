"""Kernels that read narrow values compute with the rounded weights: every format and family x every type of values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.kernels.conftest import HIDDEN, check_lstm, target_or_skip
from tests.kernels.test_lstm import SHAPES, doped
from tvm_doping import schedules, structures, targets
from tvm_doping.kernels import LstmPlan, lstm, product
from tvm_doping.kernels.sparse import EMITTERS, ROUNDING
from tvm_doping.sparsity.values import ValueType

NARROW: list[ValueType] = ["fp16", "bf16", "int8"]
LOOK_UP = ("perm32", "perm32_expand", "perm2x32")


def planned(w: Any, target: str, format: str, values: ValueType) -> LstmPlan:
    """The plan with values stored so, whatever the cost model thinks of it."""
    machine = targets.resolve(target)
    plan = schedules.choose_lstm(*w, reverse=False, target=machine, force={"format": format})
    assert plan.input.sparse == plan.recurrent.sparse == format
    ih, hh = (replace(p, values=values) for p in (plan.input, plan.recurrent))
    return replace(plan, input=ih, recurrent=hh)


def rounded(plan: LstmPlan, w: Any) -> tuple[structures.Dense, structures.Dense]:
    """The weights as they are stored; `tests/sparsity/test_values.py` holds that against an oracle."""
    arrays = lstm.pack(plan, w[0], w[1], np.zeros(4 * HIDDEN, "float32"))
    ih, hh = (
        structures.Dense(product.to_dense(p, product.select(arrays, prefix)))
        for p, prefix in ((plan.input, "ih."), (plan.recurrent, "hh."))
    )
    return ih, hh


@pytest.mark.parametrize("values", NARROW)
@pytest.mark.parametrize("format", sorted(set(EMITTERS) - ROUNDING - set(LOOK_UP)))
def test_formats(format: str, values: ValueType) -> None:
    target, w = target_or_skip("x86-64-v3"), doped("kronecker", 0.25)
    plan = planned(w, target.name, format, values)
    check_lstm(w, plan, target, SHAPES, rounded(plan, w))


@pytest.mark.parametrize("values", NARROW)
@pytest.mark.parametrize("format", ["sell16", "block4", "block8", "block16"])
def test_two_rows_a_register(format: str, values: ValueType) -> None:
    target, w = target_or_skip("x86-64-v3"), doped("kronecker", 0.25)
    plan = planned(w, target.name, format, values)
    plan = replace(plan, config=replace(plan.config, lanes=8, tile=8, tile_from=4, registers=32))
    assert plan.config.full == 16
    check_lstm(w, plan, target, [(2, 8), (1, 13)], rounded(plan, w))


@pytest.mark.parametrize("values", ["bf16", "int8"])
def test_without_f16c(values: ValueType) -> None:
    target, w = target_or_skip("x86-64-v2"), doped("kronecker", 0.25)
    plan = planned(w, target.name, "sell16", values)
    check_lstm(w, plan, target, SHAPES, rounded(plan, w))


@pytest.mark.parametrize("values", NARROW)
@pytest.mark.parametrize("format", sorted(set(EMITTERS) - ROUNDING))
def test_formats_on_avx512(format: str, values: ValueType) -> None:
    target, w = target_or_skip("x86-64-v4"), doped("zero", 0.25)
    plan = planned(w, target.name, format, values)
    check_lstm(w, plan, target, SHAPES, rounded(plan, w))


@pytest.mark.parametrize("values", ["fp32", *NARROW])
@pytest.mark.parametrize("grouped", [0, 1])
@pytest.mark.parametrize("format", LOOK_UP)
def test_look_ups_without_avx512(format: str, grouped: int, values: ValueType) -> None:
    """The kernels of AVX-512 with their instructions' portable twins: 16 lanes, which LLVM splits in two."""
    target, w = target_or_skip("x86-64-v3"), doped("zero", 0.25)
    plan = planned(w, "x86-64-v4", format, values)
    params = {"multiple": 2, "grouped": grouped}
    plan = replace(
        plan,
        config=replace(plan.config, portable=True, registers=16),
        input=replace(plan.input, params=params),
        recurrent=replace(plan.recurrent, params=params),
    )
    check_lstm(w, plan, target, [(1, 1), (18, 1), (2, 17)], rounded(plan, w))


@pytest.mark.parametrize("values", NARROW)
@pytest.mark.parametrize("family", ["low_rank", "hybrid", "dense"])
def test_dense_parts(family: str, values: ValueType) -> None:
    target, w = target_or_skip("x86-64-v3"), doped(family, 0.1)
    plan = planned(w, target.name, "csr", values)
    check_lstm(w, plan, target, SHAPES, rounded(plan, w))
