"""Which shapes of factors a matrix could be a Kronecker product plus a sparse matrix of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tvm_doping.structures.rank_one import SAME
from tvm_doping.structures.shapes import KronShapes, divisors

_FEW, _MANY = 400, 4000  # minors tested of every shape, and of the best ones
_BEST = 8  # shapes looked at twice
_NEAR = 0.75  # a shape that is wrong by a factor of 2 has half as many minors that vanish


def candidate_shapes(
    W: NDArray[np.floating], random: np.random.Generator, *, least: float
) -> list[KronShapes]:
    """Shapes (m1, n1, m2, n2), fewest parameters first, of which a share of at least `least` minors vanish.

    Rearranged for its own shapes, B (x) C is of rank one, so each 2x2 minor of four entries that S leaves
    alone vanishes, up to rounding: a share of about (1 - density)^4. In a matrix of unrelated numbers next to
    none does. For shapes that split a factor differently a minor still does where its entries agree in the
    part that was moved: for one in two when that part is 2, and for fewer otherwise. Minors are of random
    entries; those with a zero among them say nothing and do not count.
    """
    m, n = W.shape
    shapes = [
        (m1, n1, m // m1, n // n1)
        for m1 in divisors(m)
        for n1 in divisors(n)
        if 1 < m1 * n1 < m * n and m1 * n1 + (m * n) // (m1 * n1) < m * n
    ]
    few = random.random((8, _FEW))
    rates = [(_vanishing(W, shape, few), shape) for shape in shapes]
    ranked = sorted(rates, reverse=True)[:_BEST]
    many = random.random((8, _MANY))
    rates = [(_vanishing(W, shape, many), shape) for rate, shape in ranked if rate > least / 2]
    if not rates or max(rates)[0] < least:
        return []
    good = [shape for rate, shape in rates if rate >= max(_NEAR * max(rates)[0], least)]
    return sorted(good, key=lambda s: (s[0] * s[1] + s[2] * s[3], s))


def _vanishing(W: NDArray[np.floating], shapes: KronShapes, random: NDArray[np.float64]) -> float:
    """The share of random 2x2 minors of the rearrangement of W that vanish up to rounding.

    Entry (a, c) of the rearrangement, for a = (i1, j1) and c = (i2, j2), is W[i1*m2 + i2, j1*n2 + j2].
    """
    m1, n1, m2, n2 = shapes
    sizes = np.array([m1, n1, m2, n2, m1, n1, m2, n2])[:, None]
    i1, j1, i2, j2, k1, l1, k2, l2 = (random * sizes).astype(np.int64)
    # Neither two equal rows nor two equal columns: their minors are 0 in any matrix.
    proper = ((i1 != k1) | (j1 != l1)) & ((i2 != k2) | (j2 != l2))
    i1, j1, i2, j2, k1, l1, k2, l2 = (x[proper] for x in (i1, j1, i2, j2, k1, l1, k2, l2))
    flat, n = W.reshape(-1), n1 * n2

    def entry(i1: NDArray, j1: NDArray, i2: NDArray, j2: NDArray) -> NDArray[np.float64]:
        return flat[(i1 * m2 + i2) * n + j1 * n2 + j2].astype(np.float64)

    one = entry(i1, j1, i2, j2) * entry(k1, l1, k2, l2)
    other = entry(i1, j1, k2, l2) * entry(k1, l1, i2, j2)
    telling = (one != 0) & (other != 0)
    if telling.sum() < random.shape[1] / 50:
        return 0.0
    gone = np.abs(one - other) <= SAME * np.maximum(np.abs(one), np.abs(other))
    return float(gone[telling].mean())
