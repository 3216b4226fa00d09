"""The Kronecker product, and the nearest one to a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.linalg import svds

from tvm_doping.errors import InvalidInput
from tvm_doping.structures.base import Float, Float32, Structure, check_shape, matrix, take
from tvm_doping.structures.shapes import KronShapes, kron_shapes

_DIRECT = 200  # the smaller side up to which a whole SVD is quicker than Lanczos


@dataclass(frozen=True, eq=False)
class Kronecker(Structure):
    """W = B (x) C for B (m1, n1), C (m2, n2): W[i1*m2 + i2, j1*n2 + j2] = B[i1, j1] * C[i2, j2].

    With x reshaped to X (n1, n2), W x is B X C^T: m1*n2*(n1+m2) multiplications from the left, or
    n1*m2*(n2+m1) from the right; `matvec` takes the fewer.
    """

    B: Float32
    C: Float32
    kind: ClassVar[str] = "kronecker"

    def __post_init__(self) -> None:
        object.__setattr__(self, "B", matrix("B", self.B))
        object.__setattr__(self, "C", matrix("C", self.C))

    @classmethod
    def nearest(
        cls,
        W: ArrayLike,
        *,
        shapes: KronShapes | None = None,
        parameters: int | None = None,
        compression: float | None = None,
    ) -> Self:
        """The B (x) C nearest to W (m, n) in the Frobenius norm, with factors of `shapes` (m1, n1, m2, n2),
        or of those `kron_shapes` chooses for `parameters` or `compression`.

        The rearrangement of W to (m1*n1, m2*n2) turns B (x) C into vec(B) vec(C)^T, so it is its leading
        singular pair. Both factors get the same norm, and B's largest entry is positive.
        Source: Van Loan and Pitsianis, "Approximation with Kronecker products", 1993.
        """
        W = matrix("W", W)
        if shapes is None:
            shapes = kron_shapes(*W.shape, parameters=parameters, compression=compression)
        m1, n1, m2, n2 = shapes
        b, c = _leading_pair(rearrange(W, shapes).astype(np.float64))
        return cls(*balanced(b.reshape(m1, n1), c.reshape(m2, n2)))

    @property
    def shape(self) -> tuple[int, int]:
        return self.B.shape[0] * self.C.shape[0], self.B.shape[1] * self.C.shape[1]

    @property
    def shapes(self) -> KronShapes:
        """(m1, n1, m2, n2)"""
        return (*self.B.shape, *self.C.shape)  # type: ignore[return-value]  # both are matrices

    @property
    def multiplications(self) -> int:
        return min(self._left, self._right)

    @property
    def _left(self) -> int:
        m1, n1, m2, n2 = self.shapes
        return m1 * n2 * (n1 + m2)

    @property
    def _right(self) -> int:
        m1, n1, m2, n2 = self.shapes
        return n1 * m2 * (n2 + m1)

    def to_dense(self) -> Float32:
        m, n = self.shape
        return np.einsum("ij,kl->ikjl", self.B, self.C).reshape(m, n)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"B": self.B, "C": self.C}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike], shape: tuple[int, int]) -> Self:
        B, C = take(arrays, "B", "C")
        out = cls(matrix("B", B), matrix("C", C))
        check_shape(out, shape)
        return out

    def _matvec(self, x: Float) -> Float:
        B, C = self.B.astype(x.dtype), self.C.astype(x.dtype)
        X = x.reshape(*x.shape[:-1], B.shape[1], C.shape[1])
        Y = (B @ X) @ C.T if self._left <= self._right else B @ (X @ C.T)
        return Y.reshape(*x.shape[:-1], self.shape[0])


def rearrange(W: NDArray[Any], shapes: KronShapes) -> NDArray[Any]:
    """W (m1*m2, n1*n2) -> R (m1*n1, m2*n2) with R[i1*n1 + j1, i2*n2 + j2] = W[i1*m2 + i2, j1*n2 + j2]."""
    m1, n1, m2, n2 = shapes
    if min(shapes) < 1 or (m1 * m2, n1 * n2) != W.shape:
        raise InvalidInput(
            "shapes (m1, n1, m2, n2)",
            f"m1*m2 = {W.shape[0]} and n1*n2 = {W.shape[1]}",
            f"{tuple(shapes)}",
            "kron_shapes() finds factors.",
        )
    return W.reshape(m1, m2, n1, n2).transpose(0, 2, 1, 3).reshape(m1 * n1, m2 * n2)


def balanced(B: Float, C: Float) -> tuple[Float32, Float32]:
    """The same product, with factors of equal norm and B's largest entry positive, in float32."""
    norms = np.linalg.norm(B), np.linalg.norm(C)
    if not norms[0] or not norms[1]:
        return np.zeros(B.shape, np.float32), np.zeros(C.shape, np.float32)
    scale = np.sqrt(norms[1] / norms[0]) * np.sign(B.flat[np.abs(B).argmax()])
    return (B * scale).astype(np.float32), (C / scale).astype(np.float32)


def _leading_pair(R: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """b, c with b c^T the rank-one matrix nearest to R."""
    if not R.any():
        return np.zeros(R.shape[0]), np.zeros(R.shape[1])
    if min(R.shape) <= _DIRECT:
        U, s, Vt = np.linalg.svd(R, full_matrices=False)
    else:  # from the heaviest row or column, so that the same W always gives the same factors
        wide = R.shape[0] > R.shape[1]
        start = R[np.linalg.norm(R, axis=1).argmax()] if wide else R[:, np.linalg.norm(R, axis=0).argmax()]
        U, s, Vt = svds(R, k=1, v0=start)
    return U[:, 0] * s[0], Vt[0]
