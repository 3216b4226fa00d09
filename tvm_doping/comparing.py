"""How far results are from those they are compared with, and how far they may be."""

from __future__ import annotations

import numpy as np


def difference(
    got: np.ndarray, wanted: np.ndarray, tolerance: float, scores: np.ndarray | None = None
) -> tuple[float, float]:
    """(largest difference, the largest that is allowed) of two arrays of one shape; NaN where either holds a NaN.

    Numbers may differ by tolerance * max(1, largest |wanted|), integers not at all. Indices (...) or (..., k) that were chosen by
    scores (..., V) are compared by these: an index may take another's place where its score is as good up to rounding. As got and
    wanted were chosen by scores that differ by rounding each, that is twice what numbers may differ by.
    """
    if scores is None or not got.size:
        error = float(np.max(np.abs(got.astype("float64") - wanted), initial=0.0))
        exact = got.dtype.kind not in "fc"
        return error, 0.0 if exact else tolerance * max(1.0, float(np.max(np.abs(wanted), initial=0.0)))
    allowed = 2 * tolerance * max(1.0, float(np.max(np.abs(scores), initial=0.0)))
    if np.array_equal(got, wanted):
        return 0.0, allowed
    by_row = scores.reshape(-1, scores.shape[-1]).astype("float64")
    indices = got.reshape(len(by_row), -1)
    ordered = np.sort(indices, axis=1)
    if ordered.min() < 0 or ordered.max() >= by_row.shape[1] or (ordered[:, 1:] == ordered[:, :-1]).any():
        return float("inf"), allowed
    chosen, best = (np.take_along_axis(by_row, a.reshape(indices.shape), axis=1) for a in (got, wanted))
    return float(np.max(np.abs(chosen - best))), allowed
