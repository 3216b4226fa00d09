"""What counts as equal: numbers within the tolerance, integers exactly, indices by the scores that they were chosen by."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_doping.comparing import difference

SCORES = np.array([[[0.0, 3.0, 3.0 - 1e-6, 1.0, -2.0]]])


def ok(
    got: list[int], wanted: list[int], scores: np.ndarray | None = SCORES, tolerance: float = 1e-5
) -> bool:
    error, allowed = difference(np.array([[got]]), np.array([[wanted]]), tolerance, scores)
    return error <= allowed


def test_numbers() -> None:
    a = np.array([1, -200], "float32")
    assert difference(a, a, 0.0) == (0.0, 0.0)
    error, allowed = difference(a + np.float32(0.5), a, 1e-5)
    assert error == 0.5
    assert allowed == pytest.approx(2e-3)
    error, allowed = difference(np.full(1, np.nan), a[:1], 1e-5)
    assert not error <= allowed


def test_integers_are_equal_or_not_however_large() -> None:
    assert not ok([10**9], [10**9 + 1], None)
    assert ok([10**9], [10**9], None)


def test_indices_that_rounding_turned_over() -> None:
    assert ok([1], [1])
    assert ok([2], [1])
    assert ok([2, 1, 3], [1, 2, 3])


@pytest.mark.parametrize("got", [[3, 1], [1, 3], [1, 1], [2, 2], [1, -3], [1, 5], [3, 4]], ids=str)
def test_indices_that_are_wrong(got: list[int]) -> None:
    assert not ok(got, [1, 2])


def test_a_tolerance_of_nothing_takes_no_other_index() -> None:
    assert ok([1], [1], tolerance=0.0)
    assert not ok([2], [1], tolerance=0.0)


def test_scores_that_are_no_numbers_are_no_ties() -> None:
    assert not ok([1], [0], np.array([[[np.nan, 1.0]]]))
