"""Rows read from the arrays of a product, in every format and layout, against the matrix that those arrays stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm

from tests.kernels.conftest import built, sparse_matrix, structure, target_or_skip
from tvm_doping import sparsity, structures
from tvm_doping.arrays import aligned_copy, aligned_zeros
from tvm_doping.kernels import embedding, packed_rows, product
from tvm_doping.kernels.plan import Config, EmbeddingPlan, Part, Product

ROWS = 52
FAMILIES = ["kronecker", "low_rank", "hybrid", "dense", "zero"]
# How S may be packed: (format, parameters, stripes of its columns).
PACKED: list[tuple[str, dict[str, int], int]] = [
    ("csr", {"multiple": 4}, 1),
    ("csr", {"multiple": 1}, 2),
    ("sell16", {}, 1),
    ("sell16", {"window": 16}, 2),
    ("perm8", {"multiple": 2, "grouped": 0}, 1),
    ("perm8", {"multiple": 4, "grouped": 1}, 1),
    ("perm32", {"multiple": 4, "grouped": 0}, 1),
    ("perm32", {"multiple": 1, "grouped": 1}, 1),
    ("perm64", {"multiple": 4, "grouped": 1}, 1),
    ("perm2x32", {"multiple": 2, "grouped": 0}, 1),
    ("perm2x32", {"multiple": 4, "grouped": 1}, 1),
    ("block4", {}, 1),
    ("block8", {}, 1),
    ("block16", {}, 1),
]


def check(w: Any, lanes: int = 8, target: str = "x86-64-v3", **way: Any) -> None:
    """Compiled = packed reference = rows of the matrix that the product has, for all rows, some, and rows that do not exist."""
    machine, rng = target_or_skip(target), np.random.default_rng(5)
    nnz = int(w.S.nnz) if w.kind == "doped" else 0
    plan = EmbeddingPlan(
        tokens="int64",
        product=Product(part=product.part_of(w), nnz=nnz, **way),
        config=Config(lanes=lanes, registers=16),
        tied="output",
        packed=True,
    )
    arrays = embedding.pack(plan, w)
    shared = product.pack(plan.product, w, plan.config)
    for name, array in shared.items():
        np.testing.assert_array_equal(arrays[name], array)
    assert all(name.endswith((".places", "V.rows")) for name in set(arrays) - set(shared))
    true = product.to_dense(plan.product, shared)
    if plan.product.values == "fp32":
        np.testing.assert_allclose(true, w.to_dense(), atol=1e-6, rtol=1e-6)
    function = built(plan, arrays, embedding.prim_func, machine)
    for at in (np.arange(ROWS), rng.integers(0, ROWS, 7), np.array([-1, ROWS, 10**6, -(10**6)])):
        y = aligned_zeros((len(at), w.shape[1]), "float32")
        y.fill(np.nan)  # every entry must be written
        every = (*(aligned_copy(a) for a in (at, *arrays.values())), y)
        function(*(tvm.runtime.from_dlpack(a) for a in every))
        rows = true[np.clip(at, 0, ROWS - 1)]
        np.testing.assert_allclose(y, rows, atol=1e-6, rtol=1e-6)
        np.testing.assert_allclose(embedding.reference(plan, arrays, at), rows, atol=1e-6, rtol=1e-6)


def doped(family: str, columns: int = 13) -> Any:
    rng = np.random.default_rng(3)
    return structures.Doped(structure(rng, family, ROWS, columns), sparse_matrix(rng, ROWS, columns, 0.3))


@pytest.mark.parametrize("values", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize(("sparse", "params", "stripes"), PACKED, ids=str)
def test_every_format(sparse: str, params: dict[str, int], stripes: int, values: str) -> None:
    check(doped("kronecker"), sparse=sparse, params=params, stripes=stripes, values=values)


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("columns", [12, 13])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_structure(family: str, columns: int, target: str) -> None:
    lanes = {"x86-64-v2": 4, "x86-64-v3": 8, "x86-64-v4": 16}[target]
    check(doped(family, columns), lanes, target, sparse="csr", params={"multiple": 4})


@pytest.mark.parametrize("values", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("family", ["low_rank", "hybrid", "dense"])
def test_narrow_panels(family: str, values: str) -> None:
    check(structure(np.random.default_rng(3), family, ROWS, 13), values=values)


@pytest.mark.parametrize(
    ("dot", "values", "sparse"),
    [
        ("bfdot", "bf16", "block4"),
        ("smmla", "int8", "csr"),
        ("sdot", "int8", "csr"),
        ("fmlal", "fp16", "block8"),
    ],
)
@pytest.mark.parametrize("family", ["hybrid", "dense"])
def test_what_dot_products_multiply(family: str, dot: Any, values: str, sparse: str) -> None:
    """Several columns of a row side by side, in panels and in blocks."""
    params = {"multiple": 4} if sparse == "csr" else {}
    check(doped(family), dot=dot, values=values, sparse=sparse, params=params)


@pytest.mark.parametrize(("m2", "n2"), [(2, 1), (4, 13), (13, 13), (52, 1), (1, 1)])
def test_kronecker_products_of_every_shape(m2: int, n2: int) -> None:
    """B in panels or as it is; rows of C that fill a row of W, or one value of it."""
    rng = np.random.default_rng(1)
    B, C = (rng.standard_normal(shape).astype("float32") for shape in ((ROWS // m2, 13 // n2), (m2, n2)))
    check(structures.Kronecker(B, C))


@pytest.mark.parametrize(("rank", "columns"), [(1, 13), (9, 13), (16, 40)])
def test_ranks_that_fill_vectors_and_more(rank: int, columns: int) -> None:
    rng = np.random.default_rng(1)
    U, V = (rng.standard_normal(shape).astype("float32") for shape in ((ROWS, rank), (rank, columns)))
    check(structures.LowRank(U, V))


def test_a_weight_that_is_multiplied_out() -> None:
    w = doped("kronecker")
    plan = EmbeddingPlan(
        tokens="int32",
        product=Product(part=Part(kind="dense", shape=w.shape)),
        config=Config(lanes=8, registers=16),
        tied="output",
        packed=True,
    )
    arrays = embedding.pack(plan, w)
    assert list(arrays) == ["W"]
    np.testing.assert_allclose(embedding.reference(plan, arrays, np.arange(ROWS)), w.to_dense(), atol=1e-6)


def test_formats_that_rows_cannot_be_read_from() -> None:
    """A format that is new must say whether they can; sell32 and mma16 are a GPU's, which has tables of its own."""
    assert set(sparsity.FORMATS) - packed_rows.READABLE == {"perm32_expand", "sell32", "mma16"}
