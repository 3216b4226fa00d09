"""Shapes of factors: they fit, they spend the parameters wanted, and no allowed shape is cheaper."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_doping.errors import InvalidInput
from tvm_doping.structures import hybrid_shapes, kron_shapes, low_rank
from tvm_doping.structures.shapes import divisors


def work(m1: int, n1: int, m2: int, n2: int) -> int:
    return min(m1 * n2 * (n1 + m2), n1 * m2 * (n2 + m1))


def test_the_shape_with_the_fewest_multiplications_is_chosen() -> None:
    m1, n1, m2, n2 = kron_shapes(2600, 1300, parameters=4000)
    assert (m1 * m2, n1 * n2) == (2600, 1300)
    assert 3200 <= m1 * n1 + m2 * n2 <= 4040
    assert min(m1, n1) * min(m2, n2) >= 1300 / 8
    assert work(m1, n1, m2, n2) <= work(20, 130, 130, 10) < work(52, 65, 50, 20)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.floats(1.2, 100))
def test_law_shapes_multiply_to_the_matrix_and_keep_the_budget(m: int, n: int, compression: float) -> None:
    try:
        m1, n1, m2, n2 = kron_shapes(m, n, compression=compression)
    except InvalidInput:
        least = min(a * b + m * n // (a * b) for a in divisors(m) for b in divisors(n))
        assert least > 1.01 * m * n / compression
    else:
        assert (m1 * m2, n1 * n2) == (m, n)
        assert m1 * n1 + m2 * n2 <= 1.01 * m * n / compression


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 300), st.integers(1, 300), st.floats(1.0, 50))
def test_law_ranks_are_the_highest_that_the_budget_allows(m: int, n: int, compression: float) -> None:
    budget = m * n / compression
    rank = low_rank(m, n, compression=compression)
    assert rank == 1 or rank * (m + n) <= budget
    assert rank == min(m, n) or (rank + 1) * (m + n) > budget
    k, r = hybrid_shapes(m, n, compression=compression)
    assert 1 <= k < m
    assert 1 <= r <= min(m - k, n)
    assert k == 1 or r == 1 or k * n + r * (m - k + n) <= budget


def test_what_cannot_be_is_refused_with_the_least_possible() -> None:
    with pytest.raises(InvalidInput, match="at least 20 parameters"):
        kron_shapes(13, 7, compression=50)
    with pytest.raises(InvalidInput, match="either"):
        kron_shapes(4, 4)
    with pytest.raises(InvalidInput, match="both"):
        low_rank(4, 4, parameters=3, compression=3)
    with pytest.raises(InvalidInput, match="more than 0"):
        low_rank(4, 4, compression=-1)
    with pytest.raises(InvalidInput, match="2 rows"):
        hybrid_shapes(1, 4, parameters=4)


@pytest.mark.parametrize("number", [1, 2, 36, 97, 2600])
def test_divisors(number: int) -> None:
    assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]
