"""Vertical blocks: b consecutive rows that share a column, so that one x feeds b lanes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tvm_doping.sparsity.formats.base import Array, Format, Packed, column_dtype, pointers, sum_runs
from tvm_doping.structures.sparse import from_coordinates, row_of_entry


class Block(Format):
    """block_ptr (ceil(m/b)+1,) int32; columns (nblk,) uint16 (uint32 if n > 65536); values (nblk, b) float32.

    Any S can be packed: an entry that a block lacks is stored as 0, as are rows beyond the last.
    Within a band of b rows the blocks are in column order.
    """

    pointers = "block_ptr"

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.name = f"block{rows}"

    def _pack(self, S: sparse.csr_array, params: dict[str, int]) -> dict[str, Array]:
        (m, n), b = S.shape, self.rows
        row = row_of_entry(S)
        blocks, block = np.unique(row // b * n + S.indices, return_inverse=True)
        values = np.zeros((len(blocks), b), np.float32)
        values[block, row % b] = S.data
        return {
            "block_ptr": pointers(np.bincount(blocks // n, minlength=-(-m // b))),
            "columns": (blocks % n).astype(column_dtype(n)),
            "values": values,
        }

    def _unpack(self, packed: Packed) -> sparse.csr_array:
        a, b = packed.arrays, self.rows
        band = np.repeat(np.arange(len(a["block_ptr"]) - 1), np.diff(a["block_ptr"]))
        rows = band[:, None] * b + np.arange(b)
        columns = np.broadcast_to(a["columns"][: len(band), None], rows.shape)
        return from_coordinates(rows.ravel(), columns.ravel(), a["values"][: len(band)].ravel(), packed.shape)

    def _matvec(self, packed: Packed, x: NDArray[np.floating]) -> NDArray[np.floating]:
        a = packed.arrays
        terms = x[..., a["columns"], None] * a["values"].astype(x.dtype)
        y = sum_runs(terms, a["block_ptr"], axis=-2)
        return y.reshape(*x.shape[:-1], y.shape[-2] * self.rows)[..., : packed.shape[0]]
