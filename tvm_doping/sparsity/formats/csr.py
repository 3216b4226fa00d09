"""Compressed sparse rows, each row padded to a multiple that a kernel can unroll by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tvm_doping.errors import InvalidInput
from tvm_doping.sparsity.formats.base import Array, Format, Packed, column_dtype, pointers, sum_runs
from tvm_doping.structures.sparse import from_coordinates, row_of_entry


class CSR(Format):
    """indptr (m+1,) int32; indices (P,) uint16, or uint32 when n > 65536; values (P,) float32.

    A row is padded to a multiple of `multiple` with its last column and the value 0; an empty one stays so.
    """

    name = "csr"
    pointers = "indptr"
    defaults: ClassVar[Mapping[str, int]] = {"multiple": 4}

    def _pack(self, S: sparse.csr_array, params: dict[str, int]) -> dict[str, Array]:
        multiple = params["multiple"]
        if multiple < 1:
            raise InvalidInput("csr parameter multiple", "at least 1", f"{multiple}", "The default is 4.")
        lengths = np.diff(S.indptr).astype(np.int64)
        padded = -(-lengths // multiple) * multiple
        indptr = pointers(padded)
        last = np.zeros(S.shape[0], np.int64)
        last[lengths > 0] = S.indices[S.indptr[1:][lengths > 0] - 1]
        indices = np.repeat(last, padded).astype(column_dtype(S.shape[1]))
        values = np.zeros(len(indices), np.float32)
        place = np.arange(S.nnz) + (indptr[:-1] - S.indptr[:-1])[row_of_entry(S)]
        indices[place], values[place] = S.indices, S.data
        return {"indptr": indptr, "indices": indices, "values": values}

    def _unpack(self, packed: Packed) -> sparse.csr_array:
        a = packed.arrays
        rows = np.repeat(np.arange(packed.shape[0]), np.diff(a["indptr"]))
        P = len(rows)
        return from_coordinates(rows, a["indices"][:P], a["values"][:P], packed.shape)

    def _matvec(self, packed: Packed, x: NDArray[np.floating]) -> NDArray[np.floating]:
        a = packed.arrays
        return sum_runs(x[..., a["indices"]] * a["values"].astype(x.dtype), a["indptr"], axis=-1)
