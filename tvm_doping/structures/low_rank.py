"""Low rank, and the hybrid of some dense rows above a low rank, with the nearest of each to a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh

from tvm_doping.errors import InvalidInput
from tvm_doping.structures.base import Float, Float32, Structure, check_shape, matrix, take
from tvm_doping.structures.shapes import hybrid_shapes, low_rank


@dataclass(frozen=True, eq=False)
class LowRank(Structure):
    """W = U V for U (m, r), V (r, n): low-rank matrix factorisation (LMF)."""

    U: Float32
    V: Float32
    kind: ClassVar[str] = "low_rank"

    def __post_init__(self) -> None:
        object.__setattr__(self, "U", matrix("U", self.U))
        object.__setattr__(self, "V", matrix("V", self.V))
        _check_inner(self.U, self.V)

    @classmethod
    def nearest(
        cls,
        W: ArrayLike,
        *,
        rank: int | None = None,
        parameters: int | None = None,
        compression: float | None = None,
    ) -> Self:
        """The U V nearest to W (m, n) in the Frobenius norm: its leading `rank` singular triples, or as many
        as `parameters` or `compression` allow. U and V get the same norms, column by row.
        """
        W = matrix("W", W)
        if rank is None:
            rank = low_rank(*W.shape, parameters=parameters, compression=compression)
        return cls(*_truncated(W, rank))

    @property
    def shape(self) -> tuple[int, int]:
        return self.U.shape[0], self.V.shape[1]

    @property
    def rank(self) -> int:
        return self.U.shape[1]

    @property
    def multiplications(self) -> int:
        return self.U.size + self.V.size

    def to_dense(self) -> Float32:
        return self.U @ self.V

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"U": self.U, "V": self.V}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike], shape: tuple[int, int]) -> Self:
        U, V = take(arrays, "U", "V")
        out = cls(matrix("U", U), matrix("V", V))
        check_shape(out, shape)
        return out

    def _matvec(self, x: Float) -> Float:
        return (x @ self.V.T.astype(x.dtype)) @ self.U.T.astype(x.dtype)


@dataclass(frozen=True, eq=False)
class Hybrid(Structure):
    """W = [D; U V] for D (k, n) dense, U (m-k, r), V (r, n): hybrid matrix decomposition (HMD).

    Source: Thakker et al., "Run-time efficient RNN compression for inference on edge devices", 2019,
    arXiv 1906.04886.
    """

    D: Float32
    U: Float32
    V: Float32
    kind: ClassVar[str] = "hybrid"

    def __post_init__(self) -> None:
        for name in ("D", "U", "V"):
            object.__setattr__(self, name, matrix(name, getattr(self, name)))
        _check_inner(self.U, self.V)
        if self.D.shape[1] != self.V.shape[1]:
            raise InvalidInput(
                "D and V",
                "the same number of columns",
                f"{self.D.shape} and {self.V.shape}",
                "Both have those of W.",
            )

    @classmethod
    def nearest(
        cls,
        W: ArrayLike,
        *,
        dense_rows: int | None = None,
        rank: int | None = None,
        parameters: int | None = None,
        compression: float | None = None,
    ) -> Self:
        """The upper `dense_rows` of W (m, n) as they are, and the nearest U V of `rank` to the others; both
        numbers as `hybrid_shapes` chooses them for `parameters` or `compression` when not given.
        """
        W = matrix("W", W)
        if dense_rows is None or rank is None:
            dense_rows, rank = hybrid_shapes(*W.shape, parameters=parameters, compression=compression)
        if not 1 <= dense_rows < W.shape[0]:
            raise InvalidInput(
                "dense_rows", f"from 1 to {W.shape[0] - 1}", f"{dense_rows}", "Use low_rank or dense instead."
            )
        return cls(W[:dense_rows].copy(), *_truncated(W[dense_rows:], rank))

    @property
    def shape(self) -> tuple[int, int]:
        return self.D.shape[0] + self.U.shape[0], self.D.shape[1]

    @property
    def multiplications(self) -> int:
        return self.D.size + self.U.size + self.V.size

    def to_dense(self) -> Float32:
        return np.concatenate([self.D, self.U @ self.V])

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"D": self.D, "U": self.U, "V": self.V}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike], shape: tuple[int, int]) -> Self:
        D, U, V = take(arrays, "D", "U", "V")
        out = cls(matrix("D", D), matrix("U", U), matrix("V", V))
        check_shape(out, shape)
        return out

    def _matvec(self, x: Float) -> Float:
        D, U, V = (array.T.astype(x.dtype) for array in (self.D, self.U, self.V))
        return np.concatenate([x @ D, (x @ V) @ U], axis=-1)


def _truncated(W: Float32, rank: int) -> tuple[Float32, Float32]:
    """U (m, r), V (r, n) of the leading singular triples, from the smaller Gram matrix in float64."""
    m, n = W.shape
    if not 1 <= rank <= min(m, n):
        raise InvalidInput("rank", f"from 1 to {min(m, n)}", f"{rank}", "Choose a lower rank.")
    A = W.astype(np.float64) if m >= n else W.T.astype(np.float64)
    side = A.shape[1]
    _, vectors = eigh(A.T @ A, subset_by_index=[side - rank, side - 1])
    Q = vectors[:, ::-1]
    P = A @ Q  # columns of norm sigma, orthogonal
    scale = np.sqrt(np.maximum(np.linalg.norm(P, axis=0), np.finfo(np.float32).tiny))
    P, Q = (P / scale).astype(np.float32), (Q * scale).astype(np.float32)
    return (P, np.ascontiguousarray(Q.T)) if m >= n else (Q, np.ascontiguousarray(P.T))


def _check_inner(U: Float32, V: Float32) -> None:
    if U.shape[1] != V.shape[0]:
        raise InvalidInput(
            "U and V", "as many columns in U as rows in V", f"{U.shape} and {V.shape}", "Both are the rank."
        )
