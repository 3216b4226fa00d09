"""Bands of 16 rows whose columns are brought together, 16 at a time, as the tiles that a GPU's tensor cores multiply."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tvm_doping.sparsity.formats.base import Array, Format, Packed, column_dtype, pointers, sum_runs
from tvm_doping.structures.sparse import from_coordinates, row_of_entry

_SIDE = 16  # rows of a band, and columns of a tile


class MMA16(Format):
    """tile_ptr (ceil(m/16)+1,) in tiles: int32; columns (tiles, 16) uint16 (uint32 if n > 65536); values (tiles, 32, 8) float32.

    A band of 16 rows has tiles of its columns that hold an entry, in column order; what its last tile lacks repeats the last
    column with zeros. values lie as the 32 lanes of a warp hold the matrix A of PTX's `mma.m16n8k16`, 8 each, 16 bytes in fp16 or
    bf16: lane 4 g + t has rows g and g + 8 of columns 4 t + {0, 1}, then of 4 t + {2, 3}. The order of a product's columns is
    free: the instruction's k = 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of a lane are here next to each other.
    """

    name = "mma16"
    pointers = "tile_ptr"

    def _pack(self, S: sparse.csr_array, params: dict[str, int]) -> dict[str, Array]:
        m, n = S.shape
        row = row_of_entry(S)
        blocks, block = np.unique(row // _SIDE * np.int64(n) + S.indices, return_inverse=True)
        band, column = blocks // n, blocks % n
        counts = np.bincount(band, minlength=-(-m // _SIDE))
        tile_ptr = pointers(-(-counts // _SIDE))
        starts = np.concatenate([[0], np.cumsum(counts)])
        at = tile_ptr[band] * np.int64(_SIDE) + np.arange(len(blocks)) - starts[band]
        columns = np.zeros(int(tile_ptr[-1]) * _SIDE, column_dtype(n))
        last = column[starts[1:][counts > 0] - 1]
        columns[:] = np.repeat(last, np.diff(tile_ptr)[counts > 0] * _SIDE)
        columns[at] = column
        tiles = np.zeros((int(tile_ptr[-1]), _SIDE, _SIDE), np.float32)  # [tile][row][column]
        tiles[at[block] // _SIDE, row % _SIDE, at[block] % _SIDE] = S.data
        return {"tile_ptr": tile_ptr, "columns": columns.reshape(-1, _SIDE), "values": _to_lanes(tiles)}

    def _unpack(self, packed: Packed) -> sparse.csr_array:
        columns, tiles = self._tiles(packed)
        band = np.repeat(np.arange(len(packed.arrays["tile_ptr"]) - 1), np.diff(packed.arrays["tile_ptr"]))
        rows = np.broadcast_to(band[:, None, None] * _SIDE + np.arange(_SIDE)[:, None], tiles.shape)
        return from_coordinates(
            rows.ravel(), np.broadcast_to(columns[:, None], tiles.shape).ravel(), tiles.ravel(), packed.shape
        )

    def _matvec(self, packed: Packed, x: NDArray[np.floating]) -> NDArray[np.floating]:
        columns, tiles = self._tiles(packed)
        terms = np.zeros((*x.shape[:-1], *tiles.shape[:2]), x.dtype)
        for c in range(_SIDE):  # NumPy's own sums depend on how x lies in memory
            terms += tiles[:, :, c].astype(x.dtype) * x[..., columns[:, c], None]
        y = sum_runs(terms, packed.arrays["tile_ptr"], axis=-2)
        return y.reshape(*x.shape[:-1], y.shape[-2] * _SIDE)[..., : packed.shape[0]]

    @staticmethod
    def _tiles(packed: Packed) -> tuple[Array, Array]:
        """The columns and values of the tiles that there are, [tile][row][column]."""
        total = int(packed.arrays["tile_ptr"][-1])
        values = packed.arrays["values"][:total].reshape(
            total, 8, 4, 2, 2, 2
        )  # g, t, then pair, half, one of two
        tiles = values.transpose(0, 4, 1, 2, 3, 5).reshape(total, _SIDE, _SIDE)
        return packed.arrays["columns"][:total], tiles


def _to_lanes(tiles: Array) -> Array:
    """[tile][row][column] -> (tiles, 32, 8): row = 8 half + g, column = 4 t + 2 pair + one -> lane 4 g + t, [pair][half][one]."""
    split = tiles.reshape(len(tiles), 2, 8, 4, 2, 2)
    return split.transpose(0, 2, 3, 4, 1, 5).reshape(len(tiles), 32, 8)
