"""How large the parts of each structure are, for a number of parameters."""

from __future__ import annotations

from math import isqrt

from tvm_doping.errors import InvalidInput

KronShapes = tuple[int, int, int, int]

# A search that insisted on the parameters exactly would leave one or two shapes to choose from.
_ABOUT = (0.8, 1.01)
# Fewest multiplications alone would end at B of one row: a product of low rank, which is what Kronecker
# products are chosen to avoid. An eighth keeps 20x130 (x) 130x10, the quickest of its size that was measured.
_RANK = 8


def kron_shapes(
    m: int, n: int, *, parameters: int | None = None, compression: float | None = None
) -> KronShapes:
    """(m1, n1, m2, n2) with m1*m2 = m, n1*n2 = n and about `parameters` (or m*n / `compression`) in B and C.

    Of all shapes with 80 % to 101 % of the parameters wanted and a rank, min(m1,n1)*min(m2,n2), of an eighth
    of full or more, the one of fewest multiplications, min(m1*n2*(n1+m2), n1*m2*(n2+m1)) per vector. Where no
    shape has so many parameters, the nearest below; where none has so high a rank, the highest there is.
    InvalidInput when even the smallest B and C have more parameters.
    """
    budget = _budget(m, n, parameters, compression)
    found = []
    for m1 in divisors(m):
        for n1 in divisors(n):
            m2, n2 = m // m1, n // n1
            size = m1 * n1 + m2 * n2
            if size <= budget * _ABOUT[1]:
                work = min(m1 * n2 * (n1 + m2), n1 * m2 * (n2 + m1))
                found.append((size, work, min(m1, n1) * min(m2, n2), (m1, n1, m2, n2)))
    if not found:
        least = min(m1 * n1 + m * n // (m1 * n1) for m1 in divisors(m) for n1 in divisors(n))
        raise InvalidInput(
            f"Kronecker product of shape ({m}, {n})",
            f"at least {least} parameters (a compression of {m * n / least:.4g} at most)",
            f"{budget:.6g}",
            "Compress less, or choose sizes with more divisors.",
        )
    about = [row for row in found if row[0] >= budget * _ABOUT[0]]
    if not about:
        about = [row for row in found if row[0] == max(found)[0]]
    enough = min(min(m, n) / _RANK, max(row[2] for row in about))
    return min(row[1:2] + row[:1] + row[3:] for row in about if row[2] >= enough)[2]


def low_rank(m: int, n: int, *, parameters: int | None = None, compression: float | None = None) -> int:
    """The highest rank r, at least 1, with r*(m+n) <= `parameters` (or m*n / `compression`)."""
    return min(max(int(_budget(m, n, parameters, compression) // (m + n)), 1), m, n)


def hybrid_shapes(
    m: int, n: int, *, parameters: int | None = None, compression: float | None = None
) -> tuple[int, int]:
    """(k, r): dense rows and rank, both at least 1, that halve `parameters` (or m*n / `compression`)."""
    if m < 2:
        raise InvalidInput("hybrid matrix", "at least 2 rows", f"{m}", "Use low_rank or dense instead.")
    budget = _budget(m, n, parameters, compression)
    k = min(max(int(budget / 2 // n), 1), m - 1)
    r = int((budget - k * n) // (m - k + n))
    return k, min(max(r, 1), m - k, n)


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    low = [d for d in range(1, isqrt(number) + 1) if number % d == 0]
    return low + [number // d for d in reversed(low) if d * d != number]


def _budget(m: int, n: int, parameters: int | None, compression: float | None) -> float:
    if (parameters is None) == (compression is None):
        raise InvalidInput(
            "size of the structure",
            "either parameters or compression",
            "both" if parameters is not None else "neither",
            "Pass one of them.",
        )
    if min(m, n) < 1:
        raise InvalidInput("shape", "at least one row and one column", f"({m}, {n})", "Pass m and n of W.")
    wanted = parameters if compression is None else compression
    if wanted is None or not wanted > 0:
        raise InvalidInput(
            "parameters" if compression is None else "compression", "more than 0", f"{wanted}", "Raise it."
        )
    return float(wanted) if compression is None else m * n / compression
