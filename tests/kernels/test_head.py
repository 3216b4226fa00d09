"""Heads against NumPy: ties, sizes that fill no vector and no block, tiles and single streams, and values that are no numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from tests.kernels.conftest import built, target_or_skip
from tvm_doping import schedules, structures
from tvm_doping.arrays import aligned_copy, aligned_zeros
from tvm_doping.errors import InvalidInput
from tvm_doping.heads import Head
from tvm_doping.kernels import head as heads
from tvm_doping.kernels import linear

# Streams one by one, a padded tile, whole tiles, and tiles with a remainder.
ROWS = (1, 3, 16, 45)
TARGETS = ["x86-64-v2", "x86-64-v3", "x86-64-v4"]


@cache
def compiled(head: str, size: int, target: str) -> Callable[..., list[np.ndarray]]:
    """function(x (M, size), bias (size,)) -> the head of x + bias: a layer whose weight is the identity."""
    machine, w = target_or_skip(target), structures.Dense(np.eye(size, dtype="float32"))
    plan = replace(schedules.choose_linear(w, target=machine), head=head)
    arrays = linear.pack(plan, w, np.zeros(size, "float32"))
    function = built(plan, arrays, linear.prim_func, machine)

    def run(x: np.ndarray, bias: np.ndarray | None = None) -> list[np.ndarray]:
        given = arrays if bias is None else {**arrays, "bias": bias}
        wanted = heads.outputs(Head.parse(head), size)
        results = [aligned_zeros((len(x), columns), dtype) for columns, dtype in wanted]
        every = [*(aligned_copy(a) for a in (x, *given.values())), *results]
        function(*(tvm.runtime.from_dlpack(a) for a in every))
        for result, same in zip(results, linear.reference(plan, given, x), strict=True):
            np.testing.assert_allclose(result, same, atol=2e-6)
        return results

    return run


def ranked(y: np.ndarray, k: int) -> np.ndarray:
    """The indices of the k largest, the first of equal ones first: by Python's own sort, row by row."""
    return np.array([sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in y.tolist()])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("head", "size"), [("argmax", 1), ("argmax", 205), ("top_k:5", 7), ("top_k:5", 205), ("top_k:40", 205)]
)
def test_indices(head: str, size: int, target: str) -> None:
    k = Head.parse(head).k
    run, rng = compiled(head, size, target), np.random.default_rng(size)
    for rows in ROWS:
        # few different values: most are tied
        for x in (
            rng.integers(-4, 5, (rows, size)),
            np.zeros((rows, size)),
            np.tile(np.arange(size), (rows, 1)),
        ):
            *values, indices = run(y := x.astype("float32"))
            np.testing.assert_array_equal(indices, ranked(y, k))
            if values:
                np.testing.assert_array_equal(values[0], np.take_along_axis(y, indices, 1))


@settings(max_examples=60, deadline=None)
@given(
    arrays_of.arrays(
        "float32",
        st.tuples(st.integers(1, 20), st.just(83)),
        elements=st.sampled_from([-3.0, -0.0, 0.0, 1.5, 2.0]),
        fill=st.just(-3.0),
    )
)
def test_any_ties(x: np.ndarray) -> None:
    np.testing.assert_array_equal(compiled("top_k:3", 83, "x86-64-v3")(x)[1], ranked(x, 3))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [1, 7, 205])
@pytest.mark.parametrize("head", ["log_softmax", "softmax"])
def test_probabilities(head: str, size: int, target: str) -> None:
    run, rng = compiled(head, size, target), np.random.default_rng(size)
    for rows in ROWS:
        for scale in (1.0, 40.0, 1e4):
            x = (scale * rng.standard_normal((rows, size))).astype("float32")
            shifted = x.astype("float64") - x.max(axis=1, keepdims=True)
            wanted = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
            if head == "softmax":
                np.testing.assert_allclose(run(x)[0], np.exp(wanted), atol=1e-6)
            else:
                np.testing.assert_allclose(run(x)[0], wanted, rtol=2e-7, atol=2e-6)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", [7, 205])
def test_what_is_no_number(size: int, rows: int) -> None:
    x, bias = np.zeros((rows, size), "float32"), np.zeros(size, "float32")
    bias[[2, 5]] = np.nan, np.inf
    # a NaN ranks as infinity does, and keeps its place among the values
    values, indices = compiled("top_k:3", size, "x86-64-v3")(x, bias)
    np.testing.assert_array_equal(indices, np.tile([2, 5, 0], (rows, 1)))
    np.testing.assert_array_equal(values, np.tile([np.nan, np.inf, 0.0], (rows, 1)))
    for head in ("log_softmax", "softmax"):
        assert np.isnan(compiled(head, size, "x86-64-v3")(x, bias)[0]).all()
    # -inf is a logit that never comes, unless all are
    bias[:] = -np.inf
    indices = compiled("argmax", size, "x86-64-v3")(x, bias)[0]
    np.testing.assert_array_equal(indices, np.zeros((rows, 1), "int64"))
    assert np.isnan(compiled("log_softmax", size, "x86-64-v3")(x, bias)[0]).all()
    bias[3] = 0.5
    wanted = np.where(np.arange(size) == 3, 0.0, -np.inf)
    np.testing.assert_array_equal(
        compiled("log_softmax", size, "x86-64-v3")(x, bias)[0], np.tile(wanted, (rows, 1))
    )


@pytest.mark.parametrize("text", ["argmax", "log_softmax", "softmax", "top_k:1", "top_k:25"])
def test_a_head_is_written_as_it_is_read(text: str) -> None:
    assert str(Head.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "max", "top_k", "top_k:0", "top_k:-1", "top_k:1.5", "argmax:2", " argmax"]
)
def test_what_is_no_head(text: str) -> None:
    with pytest.raises(InvalidInput, match="top_k:K"):
        Head.parse(text)
