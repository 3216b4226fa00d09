"""Patterns: which entries of S training may keep, chosen by their scores (magnitudes)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tvm_doping.errors import InvalidInput

STRIPE = 32  # columns of one n:m group: the reach of one permute of two AVX-512 registers


def unstructured(scores: ArrayLike, density: float) -> NDArray[np.bool_]:
    """The round(density * m * n) highest of scores (m, n), as a mask (m, n); ties go to the first."""
    scores = _checked(scores, density)
    return _highest(scores.reshape(1, -1), round(density * scores.size)).reshape(scores.shape)


def nm32(scores: ArrayLike, density: float) -> NDArray[np.bool_]:
    """Exactly k = round(32 * density), at least 1 if density > 0, in each row of each 32 columns.

    A last stripe of fewer columns keeps min(k, width), so that every full cell has the same number of slots.
    """
    scores = _checked(scores, density)
    k = max(round(STRIPE * density), 1) if density > 0 else 0
    mask = np.zeros(scores.shape, bool)
    whole = scores.shape[1] // STRIPE * STRIPE
    if whole:
        mask[:, :whole] = _highest(scores[:, :whole].reshape(-1, STRIPE), k).reshape(-1, whole)
    if whole < scores.shape[1]:
        mask[:, whole:] = _highest(scores[:, whole:], k)
    return mask


def blocks(scores: ArrayLike, density: float, rows: int = 16) -> NDArray[np.bool_]:
    """Whole vertical blocks of `rows` x 1, by the sum of their scores: round(density * blocks) of them.

    A last band of fewer rows has blocks as tall as it is.
    """
    scores = _checked(scores, density)
    if rows < 1:
        raise InvalidInput("rows", "at least 1", f"{rows}", "Use 4, 8 or 16.")
    m = scores.shape[0]
    bands = np.add.reduceat(scores, np.arange(0, m, rows), axis=0)
    chosen = _highest(bands.reshape(1, -1), round(density * bands.size)).reshape(bands.shape)
    return np.repeat(chosen, rows, axis=0)[:m]


PATTERNS: dict[str, Callable[[ArrayLike, float], NDArray[np.bool_]]] = {
    "unstructured": unstructured,
    "nm32": nm32,
    "block4": partial(blocks, rows=4),
    "block8": partial(blocks, rows=8),
    "block16": partial(blocks, rows=16),
}


def _highest(scores: NDArray[np.floating], k: int) -> NDArray[np.bool_]:
    """The k highest of each row of scores (r, c), or all of them; ties go to the first."""
    _rows, columns = scores.shape
    if k >= columns or k == 0:
        return np.full(scores.shape, k > 0)
    bar = np.partition(scores, columns - k, axis=1)[:, columns - k, None]
    mask: NDArray[np.bool_] = scores > bar
    tied = scores == bar
    mask |= tied & (np.cumsum(tied, axis=1) <= k - mask.sum(1, keepdims=True))
    return mask


def _checked(scores: ArrayLike, density: float) -> NDArray[np.floating]:
    scores = np.asarray(scores)
    if scores.ndim != 2 or not scores.size:
        raise InvalidInput("scores", "a matrix (m, n)", f"shape {scores.shape}", "Pass |S|.")
    if not 0 <= density <= 1:
        raise InvalidInput("density", "a number from 0 to 1", f"{density}", "It is nnz / (m * n).")
    scores = scores if np.issubdtype(scores.dtype, np.floating) else scores.astype(np.float64)
    if np.isnan(scores).any():
        raise InvalidInput("scores", "numbers", "NaN", "Training has diverged: lower its learning rate.")
    return scores
