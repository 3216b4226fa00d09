"""Recovery: the structure a dense matrix was made with is found exactly, and none is where there is none."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_doping.errors import InvalidInput
from tvm_doping.sparsity import PATTERNS
from tvm_doping.structures import Dense, Doped, Kronecker, LowRank, Zero, recover
from tvm_doping.structures.rank_one import commonest_ratio

Shapes = tuple[int, int, int, int]


def doped(
    shapes: Shapes, pattern: str, density: float, seed: int = 0, only: tuple[slice, slice] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """W = B (x) C + S in float32, and S (with entries in `only` some of its rows and columns)."""
    rng = np.random.default_rng(seed)
    m1, n1, m2, n2 = shapes
    B = rng.standard_normal((m1, n1), dtype=np.float32)
    C = rng.standard_normal((m2, n2), dtype=np.float32) * np.float32(0.07)
    S = rng.standard_normal((m1 * m2, n1 * n2), dtype=np.float32) * np.float32(0.1)
    S *= PATTERNS[pattern](rng.random(S.shape), density)
    if only is not None:
        inside = np.zeros(S.shape, bool)
        inside[only] = True
        S[~inside] = 0
    return np.kron(B, C) + S, S


def exact(found: Doped, W: np.ndarray) -> bool:
    return bool(np.abs(found.to_dense() - W).max() <= 1e-6 * np.abs(W).max())


@pytest.mark.parametrize("shapes", [(13, 100, 20, 2), (8, 10, 20, 26), (4, 5, 40, 52), (80, 65, 4, 2)])
@pytest.mark.parametrize(
    ("pattern", "density"),
    [("unstructured", 0.0), ("unstructured", 0.02), ("unstructured", 0.2), ("nm32", 0.2), ("block8", 0.1)],
)
def test_factors_of_unknown_shapes_and_s_are_found(shapes: Shapes, pattern: str, density: float) -> None:
    W, S = doped(shapes, pattern, density)
    found = recover(W)
    assert isinstance(found, Doped)
    assert isinstance(found.base, Kronecker)
    assert found.base.shapes == shapes
    assert exact(found, W)
    # With a factor of eight elements, a few entries can be explained by another value of the other factor.
    assert np.count_nonzero(found.S.toarray() != 0) <= np.count_nonzero(S)
    if min(shapes[0] * shapes[1], shapes[2] * shapes[3]) > 30:
        np.testing.assert_array_equal(found.S.toarray() != 0, S != 0)
        np.testing.assert_allclose(found.S.toarray(), S, atol=1e-6)


@pytest.mark.parametrize("density", [0.05, 0.25])
def test_even_a_factor_of_two_elements_is_found(density: float) -> None:
    W, S = doped((1, 2, 120, 60), "unstructured", density)
    found = recover(W)
    assert isinstance(found, Doped)
    assert exact(found, W)
    assert found.S.nnz <= np.count_nonzero(S)


@pytest.mark.parametrize("side", ["rows", "columns"])
@pytest.mark.parametrize("density", [0.9, 1.0])
def test_an_s_that_lies_in_one_quarter_of_the_matrix_leaves_the_rest_exact(side: str, density: float) -> None:
    """Where S hides an element of a factor altogether any value will do, but not one out of proportion."""
    only = np.s_[:40, :] if side == "rows" else np.s_[:, :65]
    W, S = doped((8, 10, 20, 26), "unstructured", density, seed=3, only=only)
    found = recover(W)
    assert isinstance(found, Doped)
    assert isinstance(found.base, Kronecker)
    assert exact(found, W)
    assert np.abs(found.S.data).max() < 2 * np.abs(S).max()
    assert found.S.nnz <= 1.03 * np.count_nonzero(S)


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.integers(3, 9)] * 4),
    st.sampled_from(["unstructured", "nm32", "block4"]),
    st.floats(0, 0.2),
    st.integers(0, 10**6),
    st.floats(-20, 20),
)
def test_law_what_is_recovered_rebuilds_the_matrix(
    shapes: Shapes, pattern: str, density: float, seed: int, exponent: float
) -> None:
    W, _ = doped(shapes, pattern, density, seed)
    W = W * np.float32(2**exponent)
    found = recover(W)
    assert np.abs(found.to_dense() - W).max() <= 1e-6 * np.abs(W).max()
    assert found.parameters <= W.size


def test_the_size_of_the_main_job_takes_well_under_two_seconds() -> None:
    W, S = doped((20, 130, 130, 10), "unstructured", 0.2)
    start = time.perf_counter()
    found = recover(W)
    assert time.perf_counter() - start < 5  # 0.2 s on an idle core; tests share theirs
    assert isinstance(found, Doped)
    assert found.S.nnz == np.count_nonzero(S)


def test_scale_is_split_evenly_between_the_factors() -> None:
    W = np.kron(1e4 * np.random.default_rng(0).random((6, 7)), 1e-6 * np.random.default_rng(1).random((8, 5)))
    found = recover(W)
    assert isinstance(found, Doped)
    assert isinstance(found.base, Kronecker)
    assert np.linalg.norm(found.base.B) == pytest.approx(np.linalg.norm(found.base.C), rel=1e-5)
    assert found.S.nnz == 0


def test_a_mostly_zero_matrix_is_doped_zero() -> None:
    W = np.random.default_rng(0).standard_normal((50, 40)) * (np.random.default_rng(1).random((50, 40)) < 0.2)
    found = recover(W)
    assert isinstance(found, Doped)
    assert isinstance(found.base, Zero)
    np.testing.assert_array_equal(found.to_dense(), W.astype(np.float32))
    empty = recover(np.zeros((5, 4)))
    assert isinstance(empty, Doped)
    assert empty.S.nnz == 0


@pytest.mark.parametrize("rank", [2, 7, 30])
def test_a_matrix_of_low_rank_is_found(rank: int) -> None:
    rng = np.random.default_rng(0)
    W = rng.standard_normal((200, rank), dtype=np.float32) @ rng.standard_normal(
        (rank, 150), dtype=np.float32
    )
    found = recover(W)
    assert isinstance(found, Doped)
    assert isinstance(found.base, LowRank)
    assert found.base.rank == rank
    assert exact(found, W)


def test_where_there_is_no_structure_the_matrix_stays_dense() -> None:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((96, 80), dtype=np.float32)
    half = np.where(rng.random((96, 80)) < 0.5, normal, 0)
    noisy, _ = doped((8, 8, 12, 10), "unstructured", 0.05)
    nan = normal.copy()
    nan[3, 4] = np.nan
    for W in (
        normal,
        np.sign(normal),  # every minor may vanish by accident
        half,
        noisy + 1e-4 * normal,  # near a structure is not one
        nan,
        normal[:1, :1],
        normal[:2, :2],
        normal[:97:8, :79:6],
    ):
        found = recover(W)
        assert isinstance(found, Dense)
        np.testing.assert_array_equal(found.W, W)


def test_an_s_denser_than_allowed_is_not_accepted() -> None:
    W, _ = doped((8, 10, 20, 26), "unstructured", 0.2)
    assert isinstance(recover(W, max_density=0.1), Dense)
    with pytest.raises(InvalidInput, match="max_density"):
        recover(W, max_density=1.0)


def test_the_same_matrix_gives_the_same_structure() -> None:
    W, _ = doped((8, 10, 20, 26), "unstructured", 0.2)
    one, other = recover(W), recover(W)
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, other.arrays()[name])


def test_the_commonest_ratio_stands_outliers_that_move_the_median() -> None:
    b = np.random.default_rng(0).random(20) + 0.5
    R = np.stack([3 * b, -2 * b, 0 * b], axis=1)
    R[:12, 0] += np.arange(1, 13)  # twelve of twenty, all on one side
    R[3:9, 1] *= 5 + np.arange(6)
    np.testing.assert_allclose(commonest_ratio(R, b), [3, -2, 0], rtol=1e-6)
    assert not commonest_ratio(R, 0 * b).any()
