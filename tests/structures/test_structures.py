"""Every family x the same laws: matvec agrees with to_dense, arrays rebuild it, nearest finds its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_doping.errors import InvalidInput
from tvm_doping.structures import (
    FAMILIES,
    Dense,
    Doped,
    Hybrid,
    Kronecker,
    LowRank,
    Structure,
    Zero,
    canonical,
    compression,
    from_spec,
    to_spec,
)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def sparse_matrix(m: int, n: int, density: float = 0.1, seed: int = 0) -> np.ndarray:
    return normal(m, n, seed=seed) * (np.random.default_rng(seed).random((m, n)) < density)


CASES: dict[str, Callable[[], Structure]] = {
    "dense": lambda: Dense(normal(6, 5)),
    "zero": lambda: Zero((6, 5)),
    "kronecker from the left": lambda: Kronecker(normal(2, 7), normal(9, 2)),
    "kronecker from the right": lambda: Kronecker(normal(9, 2), normal(2, 7)),
    "kronecker of a row and a column": lambda: Kronecker(normal(1, 7), normal(9, 1)),
    "low rank": lambda: LowRank(normal(8, 3), normal(3, 5)),
    "hybrid": lambda: Hybrid(normal(2, 5), normal(6, 2), normal(2, 5)),
    "doped kronecker": lambda: Doped(Kronecker(normal(3, 4), normal(5, 2)), canonical(sparse_matrix(15, 8))),
    "doped low rank": lambda: Doped(LowRank(normal(8, 1), normal(1, 5)), canonical(sparse_matrix(8, 5))),
    "pruned": lambda: Doped(Zero((20, 30)), canonical(sparse_matrix(20, 30))),
    "pruned to nothing": lambda: Doped(Zero((3, 4)), canonical(np.zeros((3, 4)))),
    "one by one": lambda: Doped(Kronecker(normal(1, 1), normal(1, 1, seed=1)), canonical([[1.0]])),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@cases
@pytest.mark.parametrize("batch", [(), (3,), (2, 0), (2, 3)])
def test_matvec_is_the_product_with_to_dense(case: Callable[[], Structure], batch: tuple[int, ...]) -> None:
    W = case()
    m, n = W.shape
    x = np.random.default_rng(0).standard_normal((*batch, n))
    y = W.matvec(x)
    assert W.to_dense().shape == (m, n)
    assert W.to_dense().dtype == np.float32
    assert y.shape == (*batch, m)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, x @ W.to_dense().astype(np.float64).T, atol=1e-5)
    assert W.matvec(x.astype(np.float32)).dtype == np.float32


@cases
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.floats(-10, 10))
def test_law_matvec_is_linear(case: Callable[[], Structure], seed: int, scale: float) -> None:
    W = case()
    x, z = np.random.default_rng(seed).standard_normal((2, W.shape[1]))
    np.testing.assert_allclose(W.matvec(scale * x + z), scale * W.matvec(x) + W.matvec(z), atol=1e-9)


@cases
def test_arrays_and_spec_rebuild_the_same_structure(case: Callable[[], Structure]) -> None:
    W = case()
    again = FAMILIES[W.kind].from_arrays(W.arrays(), W.shape)
    for other in (again, from_spec(to_spec(W), W.arrays())):
        assert type(other) is type(W)
        assert other.arrays().keys() == W.arrays().keys()
        for name, array in W.arrays().items():
            assert other.arrays()[name].dtype == array.dtype
            np.testing.assert_array_equal(other.arrays()[name], array)


@cases
def test_arrays_are_refused_for_another_shape_or_when_one_is_missing(case: Callable[[], Structure]) -> None:
    W = case()
    if W.arrays():
        m, n = W.shape
        with pytest.raises(InvalidInput):
            FAMILIES[W.kind].from_arrays(W.arrays(), (m + 1, n))
        *_, last = W.arrays()
        with pytest.raises(InvalidInput, match=r"stored|kind"):
            FAMILIES[W.kind].from_arrays({k: v for k, v in W.arrays().items() if k != last}, W.shape)


@cases
def test_vectors_of_another_length_are_refused(case: Callable[[], Structure]) -> None:
    with pytest.raises(InvalidInput, match="last dimension"):
        case().matvec(np.zeros(case().shape[1] + 1))


@pytest.mark.parametrize(
    ("structure", "parameters", "multiplications"),
    [
        (Dense(normal(6, 5)), 30, 30),
        (Zero((6, 5)), 0, 0),
        (Kronecker(normal(20, 130), normal(130, 10)), 3900, 20 * 10 * (130 + 130)),
        (Kronecker(normal(9, 2), normal(2, 7)), 32, 2 * 2 * (7 + 9)),
        (LowRank(normal(8, 3), normal(3, 5)), 39, 39),
        (Hybrid(normal(2, 5), normal(6, 2), normal(2, 5)), 32, 32),
        (Doped(Zero((4, 4)), canonical(np.eye(4))), 4, 4),
        (Doped(Kronecker(normal(2, 2), normal(2, 2)), canonical(np.eye(4))), 12, 20),
    ],
)
def test_parameters_and_multiplications_are_counted(
    structure: Structure, parameters: int, multiplications: int
) -> None:
    assert structure.parameters == parameters
    assert structure.multiplications == multiplications


def test_kronecker_is_numpys_to_the_bit() -> None:
    B, C = normal(3, 4), normal(5, 2)
    np.testing.assert_array_equal(Kronecker(B, C).to_dense(), np.kron(B, C))


def test_a_structure_keeps_its_own_copy() -> None:
    B = normal(2, 2)
    W = Kronecker(B, normal(2, 2))
    before = W.to_dense()
    B[:] = 0
    np.testing.assert_array_equal(W.to_dense(), before)


@pytest.mark.parametrize("shapes", [(2, 3, 5, 4), (5, 1, 2, 12), (1, 12, 10, 1), (10, 12, 1, 1)])
def test_the_nearest_kronecker_is_the_leading_singular_pair(shapes: tuple[int, int, int, int]) -> None:
    W = normal(10, 12)
    found = Kronecker.nearest(W, shapes=shapes)
    m1, n1, m2, n2 = shapes
    R = W.reshape(m1, m2, n1, n2).transpose(0, 2, 1, 3).reshape(m1 * n1, m2 * n2)
    best = np.sqrt((np.linalg.svd(R, compute_uv=False)[1:] ** 2).sum())
    assert np.linalg.norm(W - found.to_dense()) == pytest.approx(best, abs=1e-4)
    assert found.shapes == shapes


def test_the_nearest_kronecker_of_a_large_matrix_takes_the_other_solver_to_the_same_end() -> None:
    W = np.kron(normal(20, 16), normal(30, 18)) + 0.1 * normal(600, 288, seed=1)
    found = Kronecker.nearest(W, shapes=(20, 16, 30, 18))
    R = W.reshape(20, 30, 16, 18).transpose(0, 2, 1, 3).reshape(320, 540)
    best = np.sqrt((np.linalg.svd(R, compute_uv=False)[1:] ** 2).sum())
    assert np.linalg.norm(W - found.to_dense()) == pytest.approx(best, rel=1e-4)
    np.testing.assert_array_equal(found.B, Kronecker.nearest(W, shapes=(20, 16, 30, 18)).B)


@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_nearest_low_rank_is_the_truncated_svd(shape: tuple[int, int], rank: int) -> None:
    W = normal(*shape)
    left = np.linalg.norm(W - LowRank.nearest(W, rank=rank).to_dense())
    assert left == pytest.approx(np.sqrt((np.linalg.svd(W, compute_uv=False)[rank:] ** 2).sum()), abs=1e-4)


def test_the_nearest_hybrid_keeps_its_upper_rows() -> None:
    W = normal(12, 9)
    found = Hybrid.nearest(W, dense_rows=3, rank=2)
    np.testing.assert_array_equal(found.to_dense()[:3], W[:3])
    assert found.U.shape == (9, 2)


@pytest.mark.parametrize("kind", ["kronecker", "low_rank", "hybrid"])
def test_nearest_of_its_own_kind_is_itself_and_zero_stays_zero(kind: str) -> None:
    W = FAMILIES[kind].nearest(normal(24, 18), compression=3)
    keys = {
        "kronecker": lambda s: {"shapes": s.shapes},
        "low_rank": lambda s: {"rank": s.rank},
        "hybrid": lambda s: {"dense_rows": s.D.shape[0], "rank": s.V.shape[0]},
    }[kind](W)
    np.testing.assert_allclose(
        FAMILIES[kind].nearest(W.to_dense(), **keys).to_dense(), W.to_dense(), atol=1e-5
    )
    assert not FAMILIES[kind].nearest(np.zeros((24, 18)), **keys).to_dense().any()


def test_the_nearest_doped_has_the_largest_residuals_as_s() -> None:
    W = normal(24, 18)
    found = Doped.nearest(W, base="kronecker", density=0.1, shapes=(4, 3, 6, 6))
    left = W - found.base.to_dense()
    assert found.S.nnz == round(0.1 * W.size)
    assert np.abs(found.S.data).min() >= np.abs(left[found.S.toarray() == 0]).max()
    assert Doped.nearest(W, base="zero", density=0.0).S.nnz == 0
    np.testing.assert_array_equal(Doped.nearest(W, base="zero", density=1.0).to_dense(), W)


def test_compression_counts_all_structures_together() -> None:
    pruned = Doped(Zero((4, 4)), canonical(np.eye(4)))
    assert compression(pruned).by_parameters == 4
    assert compression(pruned).by_bytes is None
    assert compression(pruned, Dense(normal(4, 4)), bytes=64).by_parameters == 32 / 20
    assert compression(pruned, bytes=64).by_bytes == 1
    assert compression(Zero((2, 2))).by_parameters == float("inf")


def test_s_is_made_canonical_and_must_fit() -> None:
    S = Doped(Zero((2, 3)), np.array([[0, 2.0, 0], [0, 0, 0]])).S
    assert S.data.dtype == np.float32
    assert S.indices.dtype == S.indptr.dtype == np.int32
    assert list(S.indices) == [1]
    with pytest.raises(InvalidInput, match="shape of its base"):
        Doped(Zero((2, 3)), canonical(np.eye(3)))
    with pytest.raises(InvalidInput, match="undoped"):
        Doped(Doped(Zero((3, 3)), canonical(np.eye(3))), canonical(np.eye(3)))


@pytest.mark.parametrize(
    "change",
    [
        {"S.indptr": np.array([0, 1])},
        {"S.indptr": np.array([0, 2, 1, 3])},
        {"S.indices": np.array([0, 1, 7])},
        {"S.indices": np.array([0, -1, 2])},
        {"S.values": np.ones(2)},
    ],
)
def test_damaged_sparse_arrays_are_refused(change: dict[str, np.ndarray]) -> None:
    arrays = Doped(Zero((3, 3)), canonical(np.eye(3))).arrays()
    with pytest.raises(InvalidInput, match=r"S\.indptr"):
        Doped.from_arrays({**arrays, **change}, (3, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Dense(np.zeros(3, np.float32)),
        lambda: Dense(np.zeros((0, 3), np.float32)),
        lambda: Zero((0, 1)),
        lambda: LowRank(normal(3, 2), normal(3, 3)),
        lambda: Hybrid(normal(3, 2), normal(3, 1), normal(1, 3)),
        lambda: LowRank.nearest(normal(3, 3), rank=4),
        lambda: Hybrid.nearest(normal(3, 3), dense_rows=3, rank=1),
        lambda: Kronecker.nearest(normal(6, 6), shapes=(4, 2, 2, 3)),
        lambda: Doped.nearest(normal(3, 3), base="circulant"),
        lambda: Doped.nearest(normal(3, 3), base="zero", density=2),
        lambda: from_spec({"kind": "dense"}, {}),
        lambda: from_spec({"kind": "circulant", "shape": [1, 1]}, {}),
    ],
)
def test_what_makes_no_structure_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidInput):
        make()
