"""The one form that S has everywhere: a canonical float32 CSR array."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from tvm_doping.errors import InvalidInput


def canonical(matrix: sparse.sparray | sparse.spmatrix | ArrayLike) -> sparse.csr_array:
    """`matrix` as a `csr_array` of float32: sorted int32 indices, no duplicates, no explicit zeros.

    Takes any SciPy sparse matrix or anything NumPy reads as a 2-D array, and never changes it.
    InvalidInput when it is not two-dimensional or has an empty side.
    """
    S = sparse.csr_array(matrix if sparse.issparse(matrix) else np.asarray(matrix, np.float32))
    if len(S.shape) != 2 or min(S.shape) < 1:
        raise InvalidInput(
            "S",
            "a matrix with at least one row and one column",
            f"shape {S.shape}",
            "Pass a two-dimensional array or sparse matrix.",
        )
    if S.nnz >= 2**31:
        raise InvalidInput("S", "fewer than 2**31 entries", f"{S.nnz}", "Store it in parts.")
    S = sparse.csr_array((S.data.astype(np.float32), S.indices, S.indptr), shape=S.shape, copy=True)
    S.sum_duplicates()
    S.eliminate_zeros()
    S.sort_indices()
    S.indices, S.indptr = S.indices.astype(np.int32), S.indptr.astype(np.int32)
    return S


def from_coordinates(
    rows: NDArray[np.integer],
    columns: NDArray[np.integer],
    values: NDArray[np.floating],
    shape: tuple[int, int],
) -> sparse.csr_array:
    """The canonical S with these entries; those whose value is zero are left out."""
    kept = np.flatnonzero(values)
    entries = (values[kept], (rows[kept].astype(np.int64), columns[kept].astype(np.int64)))
    return canonical(sparse.coo_array(entries, shape=shape))


def row_of_entry(S: sparse.csr_array) -> NDArray[np.int64]:
    """The row (nnz,) of each stored entry, in storage order."""
    return np.repeat(np.arange(S.shape[0], dtype=np.int64), np.diff(S.indptr))
