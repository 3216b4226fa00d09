"""Rank one plus sparse: the b c^T that most entries of a matrix are, exactly."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

# Two float32 roundings apart a ratio is off by 2**-23; a start that is itself an entry doubles that.
SAME = 5e-7

_SAMPLE = 40  # ratios that decide one element: enough for a majority among 30 % of outliers on both sides
_STARTS = 12  # columns tried as the first b; one that S has hit badly is a bad start
_GOOD = 0.6  # entries that a start must explain to be taken at once


def rank_one_plus_sparse(R: NDArray[np.floating], random: np.random.Generator) -> tuple[Float64, Float64]:
    """b (p,), c (q,), float64, with R (p, q) = b c^T at every entry that is not an outlier.

    Each c[k] is the commonest of the ratios R[j, k] / b[j], that is, the middle of the longest run of sorted
    ratios that agree to `SAME`; then b likewise from c. Where entries are exact up to rounding, as here, this
    stands more outliers than a median, which moves as soon as they are more on one side, and it needs no
    iteration. It starts from columns of a small sample and is carried to the whole matrix; a last step of
    least squares over the entries that agree averages their roundings.

    No claim is made: the caller compares b c^T with R.
    """
    rows = _sample(R.shape[0], random)
    columns = _sample(R.shape[1], random)
    small = R[np.ix_(rows, columns)].astype(np.float64)
    best, c_small = -1.0, np.zeros(len(columns))
    for start in random.permutation(len(columns))[:_STARTS]:
        c = commonest_ratio(small, small[:, start])
        b = commonest_ratio(small.T, c)
        c = commonest_ratio(small, b)
        share = float(_agree(small, b, c).mean())
        if share > best:
            best, c_small = share, c
        if best > _GOOD:
            break
    b = commonest_ratio(R[:, columns].astype(np.float64).T, c_small)
    rows = rows if b[rows].any() else np.argsort(-np.abs(b))[:_SAMPLE]
    c = commonest_ratio(R[rows].astype(np.float64), b[rows])
    return _refine(R, b, c)


def commonest_ratio(R: Float64, b: Float64) -> Float64:
    """(q,): of each column k of R (p, q) the commonest R[j, k] / b[j], over the j where b[j] is not 0.

    The median where no two agree: S covers that column, and ratios by a small b[j] are out of all proportion.
    """
    used = b != 0
    if not used.any():
        return np.zeros(R.shape[1])
    ratios = np.sort(R[used] / b[used, None], axis=0)
    count = len(ratios)
    # The widest window that agrees, by bisection in all columns at once: parts of a window that agrees agree.
    low, high = np.zeros(R.shape[1], np.int64), np.full(R.shape[1], count)
    place = np.zeros(R.shape[1], np.int64)
    index = np.arange(count)[:, None]
    while (high - low > 1).any():
        width = (low + high) // 2
        ends = index + width
        last = np.take_along_axis(ratios, np.minimum(ends, count - 1), axis=0)
        near = (ends < count) & (last - ratios <= SAME * np.maximum(np.abs(ratios), np.abs(last)))
        found = near.any(0)
        place = np.where(found, near.argmax(0), place)
        low, high = np.where(found, width, low), np.where(found, high, width)
    middle = np.where(low > 0, place + low // 2, count // 2)
    return np.take_along_axis(ratios, middle[None], axis=0)[0]


def _refine(R: NDArray[np.floating], b: Float64, c: Float64) -> tuple[Float64, Float64]:
    """One least-squares step for c and then for b, over the entries that agree."""
    kept = np.where(_agree(R, b, c), R, 0)
    weights = (kept != 0).astype(np.float32)
    c = _ratio(b @ kept, b**2 @ weights, c)
    b = _ratio(kept @ c, weights @ c**2, b)
    return b, c


def _ratio(above: Float64, below: Float64, otherwise: Float64) -> Float64:
    return np.divide(above, below, out=otherwise.copy(), where=below > 0)


def _agree(R: NDArray[np.floating], b: Float64, c: Float64) -> NDArray[np.bool_]:
    product = np.outer(b, c)
    return np.abs(R - product) <= SAME * np.abs(product)


def _sample(size: int, random: np.random.Generator) -> NDArray[np.int64]:
    return np.sort(random.choice(size, min(size, _SAMPLE), replace=False))
