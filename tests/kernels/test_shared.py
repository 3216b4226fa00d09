"""Kernels whose work is shared: in a region, only loops that are divided write to buffers, whichever format and family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tvm import tirx

from tests.kernels.conftest import HIDDEN
from tests.kernels.test_lstm import doped
from tvm_doping import schedules, targets
from tvm_doping.kernels import linear, lstm
from tvm_doping.kernels.emit import REGION
from tvm_doping.kernels.sparse import EMITTERS, ROUNDING
from tvm_doping.sparsity.dots import DOTS


def statements(node: Any) -> Iterator[Any]:
    """The statements directly below one."""
    for name in ("seq", "body", "then_case", "else_case"):
        below = getattr(node, name, None)
        yield from below if name == "seq" and below is not None else [below] if below is not None else []


def stores(node: Any, region: bool = False) -> tuple[int, int]:
    """How often the regions below a statement write to buffers outside of parallel loops; how many such loops they have."""
    if region and isinstance(node, tirx.For) and node.kind == tirx.ForKind.PARALLEL:
        return 0, 1
    region = region or (isinstance(node, tirx.AttrStmt) and node.attr_key == REGION)
    below = [stores(statement, region) for statement in statements(node)]
    written = region and isinstance(node, tirx.BufferStore)
    return written + sum(w for w, _ in below), sum(n for _, n in below)


def check(function: Any) -> None:
    written, loops = stores(function.body)
    assert not written and loops > 4


@pytest.mark.parametrize("family", ["zero", "kronecker", "low_rank", "hybrid", "dense"])
@pytest.mark.parametrize("format", sorted(EMITTERS))
def test_only_divided_loops_write(format: str, family: str) -> None:
    w = doped(family, 0.25)
    target = targets.resolve("x86-64-v4-bf16")
    options: dict[str, Any] = {
        "target": target,
        "precision": "bf16" if format in ROUNDING else "exact",
        "force": {"format": format},
    }
    plan = schedules.choose_lstm(*w, reverse=False, **options)
    plan = replace(plan, config=replace(plan.config, shared=True))
    arrays = lstm.pack(plan, *w, np.zeros(4 * HIDDEN, "float32"))
    check(lstm.prim_func(plan, arrays))
    one = schedules.choose_linear(w[0], **options)
    one = replace(one, config=replace(one.config, shared=True))
    check(linear.prim_func(one, linear.pack(one, w[0], np.zeros(4 * HIDDEN, "float32"))))


@pytest.mark.parametrize("name", DOTS)
def test_only_divided_loops_write_inputs_that_are_rounded(name: str) -> None:
    dot, target = DOTS[name], targets.resolve("neoverse-v1")
    for family, format in (("hybrid", None), *(("dense", format) for format in dot.formats)):
        w = doped(family, 0.25)
        force = {"structure": "kept", **({"format": format} if format else {})}
        plan = schedules.choose_lstm(*w, reverse=False, target=target, force=force)
        products = {
            key: replace(getattr(plan, key), values=dot.values, dot=name) for key in type(plan).products
        }
        plan = replace(plan, config=replace(plan.config, shared=True), **products)
        check(lstm.prim_func(plan, lstm.pack(plan, *w, np.zeros(4 * HIDDEN, "float32"))))
