"""A structured matrix with an extremely sparse one added: what this package is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from tvm_doping.errors import InvalidInput
from tvm_doping.structures.base import Float, Float32, Structure, matrix, take
from tvm_doping.structures.dense import Dense, Zero
from tvm_doping.structures.kronecker import Kronecker
from tvm_doping.structures.low_rank import Hybrid, LowRank
from tvm_doping.structures.sparse import canonical

BASES: dict[str, type[Dense] | type[Zero] | type[Kronecker] | type[LowRank] | type[Hybrid]] = {
    "dense": Dense,
    "zero": Zero,
    "kronecker": Kronecker,
    "low_rank": LowRank,
    "hybrid": Hybrid,
}


@dataclass(frozen=True, eq=False)
class Doped(Structure):
    """W = base + S, both (m, n); a pruned matrix is `Doped(Zero(shape), S)`.

    S may be given as any SciPy sparse matrix or dense array; it is kept as a canonical float32 CSR array.
    Source: Thakker et al., "Doping: a technique for extreme compression of LSTM models using sparse
    structured additive matrices", MLSys 2021, arXiv 2102.07071.
    """

    base: Structure
    S: sparse.csr_array
    kind: ClassVar[str] = "doped"

    def __post_init__(self) -> None:
        if isinstance(self.base, Doped):
            raise InvalidInput("base of Doped", "an undoped structure", "Doped", "Add the two S first.")
        object.__setattr__(self, "S", canonical(self.S))
        if self.S.shape != self.base.shape:
            raise InvalidInput(
                "S",
                f"the shape of its base, {self.base.shape}",
                f"{self.S.shape}",
                "Pass an S of that shape.",
            )

    @classmethod
    def nearest(
        cls, W: ArrayLike, *, base: str = "kronecker", density: float = 0.0, **arguments: Any
    ) -> Self:
        """The nearest structure of kind `base` (to which `arguments` go), and as S the round(density * m * n)
        largest entries of what it leaves. A start for fine-tuning, not the nearest sum of the two.
        """
        W = matrix("W", W)
        if not 0 <= density <= 1:
            raise InvalidInput("density", "a number from 0 to 1", f"{density}", "It is nnz / (m * n).")
        structure: Structure = family(base).nearest(W, **arguments)
        left = W - structure.to_dense()
        kept = round(density * W.size)
        order = np.argpartition(np.abs(left), min(W.size - kept, W.size - 1), axis=None)
        rows, columns = np.divmod(order[W.size - kept :], W.shape[1])
        return cls(structure, sparse.coo_array((left[rows, columns], (rows, columns)), shape=W.shape))

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape

    @property
    def density(self) -> float:
        """nnz of S / (m * n)"""
        return float(self.S.nnz / (self.shape[0] * self.shape[1]))

    @property
    def parameters(self) -> int:
        return self.base.parameters + int(self.S.nnz)

    @property
    def multiplications(self) -> int:
        return self.base.multiplications + int(self.S.nnz)

    def to_dense(self) -> Float32:
        W = self.base.to_dense()
        rows = np.repeat(np.arange(self.shape[0]), np.diff(self.S.indptr))
        W[rows, self.S.indices] += self.S.data
        return W

    def arrays(self) -> dict[str, NDArray[Any]]:
        S = {"S.indptr": self.S.indptr, "S.indices": self.S.indices, "S.values": self.S.data}
        return {**{f"base.{name}": array for name, array in self.base.arrays().items()}, **S}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, ArrayLike], shape: tuple[int, int], *, base: str | None = None
    ) -> Self:
        """The structure whose `arrays()` these are; the kind of base is found by their names if not given."""
        inner = {name[5:]: array for name, array in arrays.items() if name.startswith("base.")}
        structure = family(base or _KINDS.get(frozenset(inner), "none of these arrays")).from_arrays(
            inner, shape
        )
        indptr, indices, values = (np.asarray(a) for a in take(arrays, "S.indptr", "S.indices", "S.values"))
        _check_csr(indptr, indices, values, shape)
        return cls(structure, sparse.csr_array((values, indices, indptr), shape=shape))

    def _matvec(self, x: Float) -> Float:
        flat = x.reshape(-1, self.shape[1])
        return self.base.matvec(x) + (self.S.astype(x.dtype) @ flat.T).T.reshape(*x.shape[:-1], self.shape[0])


_KINDS = {
    frozenset({"W"}): "dense",
    frozenset(): "zero",
    frozenset({"B", "C"}): "kronecker",
    frozenset({"U", "V"}): "low_rank",
    frozenset({"D", "U", "V"}): "hybrid",
}


def family(kind: str) -> Any:
    """The class of base structures of this kind. InvalidInput for an unknown one."""
    if not isinstance(kind, str) or kind not in BASES:
        raise InvalidInput("kind of structure", f"one of {', '.join(BASES)}", f"{kind}"[:80], "Choose one.")
    return BASES[kind]


def _check_csr(
    indptr: NDArray[Any], indices: NDArray[Any], values: NDArray[Any], shape: tuple[int, int]
) -> None:
    """InvalidInput unless the three are a CSR matrix (m, n): SciPy trusts them, and files may be damaged."""
    m, n = shape
    whole = all(np.issubdtype(array.dtype, np.integer) for array in (indptr, indices))
    if whole:  # differences of unsigned numbers are never negative
        indptr, indices = indptr.astype(np.int64), indices.astype(np.int64)
    sound = (
        whole
        and values.dtype.kind in "fiu"
        and indptr.shape == (m + 1,)
        and indices.ndim == values.ndim == 1
        and len(indices) == len(values) == indptr[-1]
        and indptr[0] == 0
        and bool((np.diff(indptr) >= 0).all())
        and (not len(indices) or (indices.min() >= 0 and indices.max() < n))
    )
    if not sound:
        raise InvalidInput(
            "S.indptr, S.indices and S.values",
            f"the rows of a sparse matrix of shape {(m, n)}",
            f"lengths {indptr.size}, {indices.size} and {values.size} that do not fit",
            "Pass what arrays() returned.",
        )
