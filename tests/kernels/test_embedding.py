"""Looking up rows of a table against NumPy: structures, with S and without, integer types, and numbers outside the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm

from tests.kernels.conftest import built, sparse_matrix, structure, target_or_skip
from tvm_doping import schedules, structures
from tvm_doping.arrays import aligned_copy, aligned_zeros
from tvm_doping.kernels import embedding

FAMILIES = ["kronecker", "low_rank", "hybrid", "dense", "zero"]


def check(w: Any, target: str, tokens: str = "int64") -> None:
    """Compiled = packed reference = rows of the dense table, for all rows, some, one, and rows that do not exist."""
    machine, rng, rows = target_or_skip(target), np.random.default_rng(5), w.shape[0]
    plan = schedules.choose_embedding(w, target=machine, tokens=tokens)
    arrays = embedding.pack(plan, w)
    function = built(plan, arrays, embedding.prim_func, machine)
    for numbers in (
        np.arange(rows),
        rng.integers(0, rows, 7),
        np.array([rows - 1]),
        np.array([-1, rows, 10**6, -(10**6)]),
    ):
        at, y = numbers.astype(tokens), aligned_zeros((len(numbers), w.shape[1]), "float32")
        y.fill(np.nan)  # every entry must be written
        every = (*(aligned_copy(a) for a in (at, *arrays.values())), y)
        function(*(tvm.runtime.from_dlpack(a) for a in every))
        true = w.to_dense()[np.clip(numbers, 0, rows - 1)]
        np.testing.assert_allclose(y, true, atol=1e-6)
        np.testing.assert_allclose(embedding.reference(plan, arrays, at), true, atol=1e-6)


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("columns", [12, 13])
@pytest.mark.parametrize("family", FAMILIES)
def test_doped(family: str, columns: int, target: str) -> None:
    rng = np.random.default_rng(3)
    check(
        structures.Doped(structure(rng, family, 52, columns), sparse_matrix(rng, 52, columns, 0.2)),
        target,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_sparse_part(family: str) -> None:
    rng = np.random.default_rng(3)
    check(structures.Doped(structure(rng, family, 52, 13), np.zeros((52, 13), "float32")), "x86-64-v3")


@pytest.mark.parametrize("family", ["kronecker", "low_rank", "hybrid", "dense"])
def test_structure_alone_and_int32(family: str) -> None:
    check(structure(np.random.default_rng(3), family, 52, 13), "x86-64-v3", "int32")


def test_a_factor_wider_than_a_vector() -> None:
    B, C = (
        np.random.default_rng(i).standard_normal(s).astype("float32") for i, s in ((0, (4, 3)), (1, (5, 19)))
    )
    check(structures.Kronecker(B, C), "x86-64-v3")
