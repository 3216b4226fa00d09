"""The structure that a dense matrix has, exactly, or none."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from tvm_doping.errors import InvalidInput
from tvm_doping.structures.base import Float32, Structure, matrix
from tvm_doping.structures.dense import Dense, Zero
from tvm_doping.structures.doped import Doped
from tvm_doping.structures.kron_search import candidate_shapes
from tvm_doping.structures.kronecker import Kronecker, balanced, rearrange
from tvm_doping.structures.low_rank import LowRank
from tvm_doping.structures.rank_one import SAME, rank_one_plus_sparse

_EXACT = 1e-6  # what is returned reproduces W to this, of the largest |W|
_TRIES = 4  # shapes of factors that are worth the full recovery
_SEED = 0  # the same W always gives the same structure


def recover(W: ArrayLike, *, max_density: float = 0.3) -> Structure:
    """W (m, n) as Doped(Zero | Kronecker | LowRank, S) with nnz(S) <= max_density * m * n, or Dense(W).

    Tried in this order: W itself mostly zero; W = B (x) C + S with factors of unknown shapes; W of low rank,
    with empty S. The factors come out up to a scale, which is split evenly between them, and up to rounding,
    so entries of W - base within rounding are not part of S, and all others are. Whatever is returned was
    rebuilt and reproduces W to 1e-6 of its largest entry, with fewer parameters than m*n.

    The S returned is the one W was made with if S is spread out and both factors have tens of elements. If a
    factor has two or three, or S covers nearly all that an element of a factor has a part in, what W was made
    with cannot be told: S then has about as many entries (a few % more at worst), but not all the same ones.

    Not found: a low rank or hybrid with a nonempty S (those are known from the expression that made them), a
    rank so high (hundreds) that float32 products of it differ by 1e-6, a product that was rounded to less
    than float32, and an S denser than `max_density`.
    W is float32 (others are converted); with a NaN or an infinity it is Dense.
    """
    W = matrix("W", W)
    if not 0 <= max_density < 1:
        raise InvalidInput(
            "max_density", "at least 0 and less than 1", f"{max_density}", "The default is 0.3."
        )
    if not np.isfinite(W).all():
        return Dense(W)
    if np.count_nonzero(W) <= max_density * W.size:
        m, n = W.shape
        return Doped(Zero((m, n)), W)
    random = np.random.default_rng(_SEED)
    # Half of what the densest S leaves: minors are a sample, and S need not be spread evenly.
    for shapes in candidate_shapes(W, random, least=(1 - max_density) ** 4 / 2)[:_TRIES]:
        m1, n1, m2, n2 = shapes
        b, c = rank_one_plus_sparse(rearrange(W, shapes), random)
        base = Kronecker(*balanced(b.reshape(m1, n1), c.reshape(m2, n2)))
        product = base.to_dense()
        found = _believed(W, base, W - product, SAME * np.abs(product), max_density)
        if found is not None:
            return found
    factors = _low_rank(W, random)
    if factors is not None:
        low_rank = LowRank(*factors)
        left = W - low_rank.to_dense()
        found = _believed(W, low_rank, left, _EXACT * np.abs(W).max(), 0.0)
        if found is not None:
            return found
    return Dense(W)


def _believed(
    W: Float32, base: Structure, left: Float32, rounding: ArrayLike, max_density: float
) -> Doped | None:
    """base + what is left of W beyond rounding; None if that is too much, or does not rebuild W."""
    kept = np.abs(left) > np.asarray(rounding)
    if np.count_nonzero(kept) > max_density * W.size:
        return None
    rows, columns = np.nonzero(kept)
    found = Doped(base, sparse.coo_array((left[rows, columns], (rows, columns)), shape=W.shape))
    exact = np.abs(found.to_dense() - W).max() <= _EXACT * np.abs(W).max()
    return found if exact and found.parameters < W.size else None


def _low_rank(W: Float32, random: np.random.Generator) -> tuple[Float32, Float32] | None:
    """U (m, r), V (r, n) of the numerical rank r of W, or None where they would not be at most half of it.

    A random square part that is larger than the highest such rank has the rank of W or, if W is of full rank,
    its own full rank, so that most matrices cost one small factorisation.
    """
    m, n = W.shape
    highest = m * n // (2 * (m + n))
    side = highest + 8
    if highest < 1 or side > min(m, n):
        return None
    part = W[np.ix_(random.choice(m, side, replace=False), random.choice(n, side, replace=False))]
    if _rank(part.astype(np.float64)) > highest:
        return None
    test = W.astype(np.float64) @ random.standard_normal((n, side))
    Q, _ = np.linalg.qr(test)
    P, sigma, V = np.linalg.svd(Q.T @ W, full_matrices=False)
    rank = max(_numerical_rank(sigma), 1)
    if rank > highest:
        return None
    root = np.sqrt(sigma[:rank])
    U = (Q @ P[:, :rank]) * root
    return U.astype(np.float32), (root[:, None] * V[:rank]).astype(np.float32)


def _rank(part: NDArray[np.float64]) -> int:
    return _numerical_rank(np.linalg.svd(part, compute_uv=False))


def _numerical_rank(sigma: NDArray[np.floating]) -> int:
    """Singular values above what rounding each entry to float32 makes of none."""
    return int((sigma > sigma[0] * 3e-7 * np.sqrt(len(sigma))).sum())
