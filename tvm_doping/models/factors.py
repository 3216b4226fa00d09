"""The structured part that a weight starts with: the sizes of its factors, and their first values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tvm_doping import structures
from tvm_doping.errors import InvalidInput
from tvm_doping.models.nearest import Fit, Sizes, candidates, nearest

# Beside S the structured part gets little. A Kronecker product gets about one and a half times the fewest
# parameters that any shapes of factors have, 2*sqrt(m*n): the shapes of fewest multiplications lie there. A
# low rank needs more to be of use, so U, V and D get half of what the compression leaves.
KRONECKER_PARAMETERS = 3.0
LOW_RANK_SHARE = 0.5


def start(
    kind: str,
    W: np.ndarray,
    sizes: Sizes,
    scale: float,
    random: np.random.Generator,
) -> structures.Structure:
    """Normal factors of these sizes for W (m, n), for which the structured part's standard deviation is `scale` times that of
    W."""
    m, n = int(W.shape[0]), int(W.shape[1])
    shapes, deviations = _factors(kind, (m, n), sizes, float(W.std()) * scale)
    arrays = {
        name: random.standard_normal(shape, dtype=np.float32) * np.float32(deviations[name])
        for name, shape in shapes.items()
    }
    return structures.FAMILIES[kind].from_arrays(arrays, (m, n))


def nearest_start(
    kind: str,
    W: np.ndarray,
    sizes: Sizes,
    budget: int,
    *,
    sparse: bool,
    pattern: str,
    search: bool,
) -> Fit:
    """The structured part and S nearest to W together (`models.nearest`); search: of all sizes, not these alone."""
    options = [sizes]
    if search:
        most = int(KRONECKER_PARAMETERS * math.sqrt(W.size))
        options = candidates(kind, W, budget, sparse, sizes, most)
    return nearest(W, kind, options, budget=budget, sparse=sparse, pattern=pattern)


def sizes_of(
    kind: str,
    path: str,
    shape: tuple[int, int],
    budget: int,
    sparse: bool,
    factors: tuple[int, int] | None,
    rank: int | None,
) -> dict[str, Any]:
    """How large the factors of a weight (m, n), called `path`, of `budget` parameters in all are: what the family's `nearest`
    takes.

    sparse: S shares the budget. Raises InvalidInput for factors that do not fit.
    """
    m, n = shape
    if factors is not None and kind not in ("kronecker", "hybrid"):
        raise InvalidInput("factors", "structure kronecker or hybrid", kind, "Leave factors out.")
    if rank is not None and kind != "low_rank":
        raise InvalidInput("rank", "structure low_rank", kind, "Leave rank out.")
    share = max(int(budget * (LOW_RANK_SHARE if sparse else 1.0)), 1)
    if kind == "kronecker":
        if factors is None:
            wanted = min(KRONECKER_PARAMETERS * math.sqrt(m * n), budget) if sparse else budget
            return {"shapes": structures.kron_shapes(m, n, parameters=int(wanted))}
        m1, n1 = factors
        if m1 < 1 or n1 < 1 or m % m1 or n % n1:
            raise InvalidInput(
                f"factors of {path}",
                f"divisors of its shape {m}x{n}",
                f"B of {m1}x{n1}",
                f"{m} % m1 and {n} % n1 must be 0; leave factors out to have them chosen.",
            )
        return {"shapes": (m1, n1, m // m1, n // n1)}
    if kind == "low_rank":
        r = structures.low_rank(m, n, parameters=share) if rank is None else rank
        _within(f"rank of {path}", r, min(m, n))
        return {"rank": r}
    if kind == "hybrid":
        k, r = structures.hybrid_shapes(m, n, parameters=share) if factors is None else factors
        _within(f"dense rows of {path}", k, m - 1)
        _within(f"rank of {path}", r, min(m - k, n))
        return {"dense_rows": k, "rank": r}
    return {}


def _within(what: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise InvalidInput(
            what, f"a number from 1 to {most}", f"{value}", "Choose one that the weight's shape allows."
        )


def _factors(
    kind: str, shape: tuple[int, int], sizes: Sizes, deviation: float
) -> tuple[dict[str, tuple[int, int]], dict[str, float]]:
    """Shapes of the factors, and the standard deviations that give every entry of the structured part the
    same one."""
    m, n = shape
    if kind == "kronecker":
        m1, n1, m2, n2 = sizes["shapes"]
        root = math.sqrt(deviation)
        return {"B": (m1, n1), "C": (m2, n2)}, {"B": root, "C": root}
    if kind in ("low_rank", "hybrid"):
        k, r = sizes.get("dense_rows", 0), sizes["rank"]
        root = math.sqrt(deviation / math.sqrt(r))
        upper: dict[str, tuple[int, int]] = {"D": (k, n)} if k else {}
        return {**upper, "U": (m - k, r), "V": (r, n)}, {"D": deviation, "U": root, "V": root}
    return {}, {}
