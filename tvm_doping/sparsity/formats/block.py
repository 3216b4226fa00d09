"""Vertical blocks: b consecutive rows that share a column, so that one x feeds b lanes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tvm_doping.errors import InvalidInput
from tvm_doping.sparsity.formats.base import Array, Format, Packed, column_dtype, pointers, sum_runs
from tvm_doping.structures.sparse import from_coordinates, row_of_entry


class Block(Format):
    """block_ptr (ceil(m/b)+1,) int32; columns (nblk,) uint16 (uint32 if n > 65536); values (nblk, b) float32.

    Any S can be packed: an entry that a block lacks is stored as 0, as are rows beyond the last.
    Within a band of b rows the blocks are in column order.

    each > 1: so many blocks of a band side by side, for an instruction that multiplies that many columns at once: columns
    (groups, each); values (groups, b * each), those of a row next to each other; block_ptr counts groups. The last group of a band
    is filled up with zeros of a column that it has.
    """

    pointers = "block_ptr"
    defaults: ClassVar[Mapping[str, int]] = {"each": 1}

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.name = f"block{rows}"

    def _pack(self, S: sparse.csr_array, params: dict[str, int]) -> dict[str, Array]:
        (m, n), b = S.shape, self.rows
        row = row_of_entry(S)
        blocks, block = np.unique(row // b * n + S.indices, return_inverse=True)
        each = params["each"]
        if not 1 <= each <= 4:
            raise InvalidInput(f"format {self.name}", "each between 1 and 4", f"{each}", "Leave it out.")
        counts = np.bincount(blocks // n, minlength=-(-m // b))
        groups = -(-counts // each)
        place = np.arange(len(blocks)) - np.repeat(np.cumsum(counts) - counts, counts)
        place += np.repeat(np.cumsum(groups) - groups, counts) * each
        values = np.zeros((groups.sum() * each, b), np.float32)
        values[place[block], row % b] = S.data
        columns = np.full(len(values), -1, np.int64)
        columns[place] = blocks % n
        # what fills a group up stands behind its last column
        columns = np.maximum.accumulate(columns.reshape(-1, each), axis=1)
        apart = values.reshape(-1, each, b).transpose(0, 2, 1).reshape(-1, b * each)
        return {
            "block_ptr": pointers(groups),
            "columns": columns.astype(column_dtype(n)) if each > 1 else columns[:, 0].astype(column_dtype(n)),
            "values": np.ascontiguousarray(apart),
        }

    def _unpack(self, packed: Packed) -> sparse.csr_array:
        b = self.rows
        band, columns, values = self._blocks(packed)
        rows = band[:, None] * b + np.arange(b)
        every = np.broadcast_to(columns[:, None], rows.shape)
        return from_coordinates(rows.ravel(), every.ravel(), values.ravel(), packed.shape)

    def _matvec(self, packed: Packed, x: NDArray[np.floating]) -> NDArray[np.floating]:
        a, each = packed.arrays, packed.params["each"]
        _, columns, values = self._blocks(packed)
        y = sum_runs(x[..., columns, None] * values.astype(x.dtype), a["block_ptr"] * each, axis=-2)
        return y.reshape(*x.shape[:-1], y.shape[-2] * self.rows)[..., : packed.shape[0]]

    def _blocks(self, packed: Packed) -> tuple[Array, Array, Array]:
        """The band (K,), the column (K,) and the values (K, b) of each block, those that fill groups up too."""
        a, b, each = packed.arrays, self.rows, packed.params["each"]
        band = np.repeat(np.arange(len(a["block_ptr"]) - 1), np.diff(a["block_ptr"]) * each)
        values = a["values"].reshape(-1, b, each).transpose(0, 2, 1).reshape(-1, b)
        return band, a["columns"].reshape(-1)[: len(band)], values[: len(band)]
