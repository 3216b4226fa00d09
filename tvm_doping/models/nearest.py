"""The structured part and S that come nearest to a trained weight together, by alternating minimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvm_doping.sparsity import PATTERNS
from tvm_doping.structures import FAMILIES, Doped, Hybrid, Kronecker, LowRank, Structure, Zero
from tvm_doping.structures.kronecker import balanced, rearrange
from tvm_doping.structures.shapes import divisors

Float32 = NDArray[np.float32]
Sizes = Mapping[str, Any]

ROUNDS = 50  # trained weights are done after 10 to 30
_ENOUGH = 1e-4  # a round that lowers the error by less than this share of it is the last
_TRIED, _TRIAL = 4, 3  # sizes that are worth fitting, and the rounds after which the best of them is known
_SWEEPS = 3  # power iterations that tell shapes of factors apart: their order is what counts
_RIDGE = 1e-6  # of the mean diagonal: a row all of whose entries are in S says nothing about its factor


@dataclass(frozen=True, kw_only=True)
class Fit:
    """base + S near to W: the mask (m, n) says where S is; errors ||W - base - S|| / ||W|| after each round, the first being
    that of the structure nearest to W alone, with the largest of what it leaves as S."""

    base: Structure
    mask: NDArray[np.bool_]
    errors: tuple[float, ...]

    def doped(self, W: Float32) -> Doped:
        """base + S, S being what the base leaves of W where the mask is open."""
        return Doped(self.base, np.where(self.mask, W - self.base.to_dense(), 0))


def nearest(
    W: Float32,
    kind: str,
    sizes: Sequence[Sizes],
    *,
    budget: int,
    sparse: bool = True,
    pattern: str = "unstructured",
    rounds: int = ROUNDS,
) -> Fit:
    """Minimise ||W - base - S|| over structures of a kind and over S under a pattern.

    W          (m, n) float32;
    sizes      what `FAMILIES[kind].nearest` takes to say how large the factors are; of several the best is found;
    budget     parameters of base and S together; S has what the factors leave (nothing where `sparse` is false);

    Rearranged, each structure is a product U V of low rank (a Kronecker product: of rank one). From the nearest to W alone each
    round takes as S the largest errors, which the pattern allows, and then fits U and V by least squares to the entries outside
    S: both lower the same sum, or leave it. Source: Zhou and Tao, "GoDec", 2011, whose S is unstructured and whose
    structured part is fitted to W - S, to the same end in more rounds.
    """
    fits = [_Fitting(W, kind, one, budget if sparse else 0, pattern) for one in sizes]
    if len(fits) > 1:
        for fit in fits:
            fit.go(_TRIAL)
    best = min(fits, key=lambda fit: fit.errors[-1])
    best.go(rounds)
    return Fit(base=best.structure(), mask=best.mask, errors=tuple(best.errors))


def candidates(kind: str, W: Float32, budget: int, sparse: bool, usual: Sizes, most: int) -> list[Sizes]:
    """Sizes of factors that may come nearest to W, the `usual` ones first; those of a Kronecker product have at most
    `most` parameters, beside an S.

    What a size gains is estimated by what its factors explain of W and what the largest entries of W, as many as the rest of
    the budget, do.
    """
    m, n = W.shape
    gains = np.concatenate(
        [[0.0], np.cumsum(np.sort(np.square(W, dtype=np.float64), axis=None)[::-1][: budget + 1])]
    )
    rows: list[tuple[float, Sizes]] = []
    if kind == "kronecker":
        most = min(max(most, m + n), budget - 1) if sparse else budget
        for m1 in divisors(m):
            for n1 in divisors(n):
                shapes = (m1, n1, m // m1, n // n1)
                parameters = m1 * n1 + shapes[2] * shapes[3]
                if parameters <= most:
                    rows.append(
                        (_explained(W, shapes) + gains[budget - parameters] * sparse, {"shapes": shapes})
                    )
    elif kind == "low_rank" and sparse:
        ranks = range(1, min((budget - 1) // (m + n), m, n) + 1)
        if ranks:
            product = LowRank.nearest(W, rank=ranks[-1])
            sigma = np.cumsum(
                np.square(product.V, dtype=np.float64).sum(1) ** 2
            )  # its rows have norm sqrt(sigma)
            rows = [(sigma[r - 1] + gains[budget - r * (m + n)], {"rank": r}) for r in ranks]
    rows.sort(key=lambda row: -row[0])
    return [usual, *(row[1] for row in rows[:_TRIED] if row[1] != usual)]


class _Fitting:
    """One fit on its way: R (p, q) is W rearranged, U (p, r) and V (r, q) the factors of its structured part."""

    def __init__(self, W: Float32, kind: str, sizes: Sizes, budget: int, pattern: str) -> None:
        self.W, self.kind, self.sizes, self.pattern = W, kind, sizes, pattern
        first: Any = FAMILIES[kind].nearest(W, **sizes)
        self.nonzeros = max(budget - first.parameters, 0)
        if isinstance(first, Kronecker):
            self.U, self.V = first.B.reshape(-1, 1), first.C.reshape(1, -1)
        elif isinstance(first, LowRank | Hybrid):
            self.U, self.V = first.U, first.V
        self.norm = float(np.linalg.norm(W)) or 1.0
        self.errors: list[float] = []
        self.mask = self._largest(first.to_dense())

    def go(self, rounds: int) -> None:
        """Rounds until they gain no more, at most so many."""
        for _ in range(0 if self.kind == "zero" else rounds):
            R, M = self._rearranged(self.W), self._rearranged((~self.mask).astype(np.float32))
            before = self.U, self.V, self.mask
            self.V = _least_squares(self.U, R, M)
            self.U = _least_squares(self.V.T, R.T, M.T).T
            self.mask = self._largest(self.structure().to_dense())
            if self.errors[-1] > self.errors[-2]:  # by rounding only
                self.U, self.V, self.mask = before
                self.errors.pop()
                return
            if self.errors[-1] > (1 - _ENOUGH) * self.errors[-2]:
                return

    def structure(self) -> Structure:
        """The structured part, its factors of equal norms."""
        m, n = self.W.shape
        if self.kind == "zero":
            return Zero((m, n))
        if self.kind == "kronecker":
            m1, n1, m2, n2 = self.sizes["shapes"]
            return Kronecker(*balanced(self.U.reshape(m1, n1), self.V.reshape(m2, n2)))
        product = LowRank.nearest(self.U @ self.V, rank=self.V.shape[0])
        k = m - len(self.U)
        return Hybrid(self.W[:k], product.U, product.V) if k else product

    def _largest(self, structured: Float32) -> NDArray[np.bool_]:
        """The mask of the errors that S is best spent on; notes the error that is left."""
        squares = np.square(self.W - structured)
        density = self.nonzeros / self.W.size
        mask = PATTERNS[self.pattern](squares, density) if self.nonzeros else np.zeros(self.W.shape, bool)
        left = np.where(mask, 0, squares).sum(dtype=np.float64)
        self.errors.append(float(np.sqrt(left)) / self.norm)
        return mask

    def _rearranged(self, array: Float32) -> Float32:
        if self.kind == "kronecker":
            return rearrange(array, self.sizes["shapes"])
        return array[len(array) - len(self.U) :]


def _least_squares(U: Float32, R: Float32, M: Float32) -> Float32:
    """The V (r, q) that minimises sum(M * (R - U V)^2), for U (p, r) and R, M (p, q)."""
    r = U.shape[1]
    right = ((M * R).T @ U).astype(np.float64)
    gram = (M.T @ (U[:, :, None] * U[:, None, :]).reshape(len(U), r * r)).reshape(-1, r, r).astype(np.float64)
    mean = np.trace(gram, axis1=1, axis2=2) / r
    gram += (_RIDGE * np.maximum(mean, mean.max() or 1.0) * np.eye(r)[..., None]).transpose(2, 0, 1)
    return np.linalg.solve(gram, right[..., None])[..., 0].T.astype(np.float32)


def _explained(W: Float32, shapes: tuple[int, int, int, int]) -> float:
    """About the squared leading singular value of W rearranged for these shapes: what B (x) C explains of ||W||^2."""
    R = rearrange(W, shapes)
    b = R[:, np.linalg.norm(R, axis=0).argmax()]
    value = 0.0
    for _ in range(_SWEEPS):
        c = R.T @ b
        value = float(np.linalg.norm(c))
        if not value:
            return 0.0
        b = R @ (c / value)
        value = float(np.linalg.norm(b))
        b = b / (value or 1.0)
    return value**2
