"""perm32: cells of 16 rows x 32 columns, so that x is read by permuting two registers and never gathered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tvm_doping.errors import InvalidInput
from tvm_doping.sparsity.formats.base import LANES, Array, Format, Packed, lanes_by_length, pointers, sum_runs
from tvm_doping.structures.sparse import from_coordinates, row_of_entry

STRIPE = 32  # columns: two AVX-512 registers of x, the reach of one vpermt2ps


class Perm32(Format):
    """Sixteen rows (a group, one row a lane) by 32 columns (a stripe): a cell, stored as k slots of 16 lanes.

    rows (G*16,) int32     row of each lane: natural order, or by descending length when `sort` is 1
    stripes (cells,)       column // 32, uint16 (uint32 when n > 32*65536)
    counts (G, K) int32    cells of the group that have 1..K slots; K is `max_slots`
    cell_ptr, slot_ptr     (G+1,) int32
    indices (slots, 16)    uint8, column % 32
    values (slots, 16)     float32

    k is the most nonzeros that a lane has in the cell; cells without any are not stored, and one with more
    than K slots is stored as several of at most K. In a group, cells are ordered by k, then by stripe. A lane
    with fewer than k is padded with index 0 and value 0.
    """

    name = "perm32"
    defaults: ClassVar[Mapping[str, int]] = {"max_slots": 12, "sort": 0}

    def _pack(self, S: sparse.csr_array, params: dict[str, int]) -> dict[str, Array]:
        K, (m, n) = params["max_slots"], S.shape
        if not 1 <= K <= STRIPE or params["sort"] not in (0, 1):
            raise InvalidInput(
                "perm32 parameters",
                "max_slots in 1..32 and sort 0 or 1",
                f"{params}",
                "The defaults are 12 and 0.",
            )
        G, stripes = -(-m // LANES), -(-n // STRIPE)
        lanes = lanes_by_length(np.diff(S.indptr) if params["sort"] else np.zeros(m, np.int64))
        rank = np.empty(len(lanes), np.int64)
        rank[lanes] = np.arange(len(lanes))

        row, stripe = row_of_entry(S), S.indices.astype(np.int64) // STRIPE
        lane = rank[row]
        # A run: the entries of one row in one stripe. Columns are sorted, so a run is contiguous.
        fresh = np.ones(S.nnz, bool)
        fresh[1:] = (row[1:] != row[:-1]) | (stripe[1:] != stripe[:-1])
        starts, run = np.flatnonzero(fresh), np.cumsum(fresh) - 1
        position = np.arange(S.nnz) - starts[run] if S.nnz else np.zeros(0, np.int64)
        lengths = np.diff(np.append(starts, S.nnz))
        keys = lane[starts] // LANES * stripes + stripe[starts]
        places, place_of_run = np.unique(keys, return_inverse=True)
        depth = np.zeros(len(places), np.int64)
        np.maximum.at(depth, place_of_run, lengths)

        # Split deep places into cells, then order the cells of each group.
        parts = -(-depth // K)
        first = np.cumsum(parts) - parts
        place = np.repeat(np.arange(len(places)), parts)
        part = np.arange(len(place)) - first[place]
        slots = np.minimum(depth[place] - part * K, K)
        group, number = places[place] // stripes, places[place] % stripes
        order = np.lexsort((part, number, slots, group))
        slot_of = np.empty(len(order), np.int64)
        slot_of[order] = np.cumsum(slots[order]) - slots[order]

        counts = np.zeros((G, K), np.int32)
        np.add.at(counts, (group, slots - 1), 1)
        slot_ptr = pointers(counts @ np.arange(1, K + 1))
        indices = np.zeros((slot_ptr[-1], LANES), np.uint8)
        values = np.zeros(indices.shape, np.float32)
        slot = slot_of[first[place_of_run[run]] + position // K] + position % K
        indices[slot, lane % LANES], values[slot, lane % LANES] = S.indices % STRIPE, S.data
        return {
            "rows": lanes,
            "stripes": number[order].astype(np.uint16 if n <= STRIPE * 2**16 else np.uint32),
            "counts": counts,
            "cell_ptr": pointers(counts.sum(1)),
            "slot_ptr": slot_ptr,
            "indices": indices,
            "values": values,
        }

    def _unpack(self, packed: Packed) -> sparse.csr_array:
        a, columns = packed.arrays, _columns(packed)
        rows = np.repeat(a["rows"].reshape(-1, LANES), np.diff(a["slot_ptr"]), axis=0)
        return from_coordinates(rows.ravel(), columns.ravel(), a["values"][: len(rows)].ravel(), packed.shape)

    def _matvec(self, packed: Packed, x: NDArray[np.floating]) -> NDArray[np.floating]:
        a, columns = packed.arrays, _columns(packed)
        terms = x[..., columns] * a["values"][: len(columns)].astype(x.dtype)
        y = np.empty((*x.shape[:-1], len(a["rows"])), x.dtype)
        y[..., a["rows"]] = sum_runs(terms, a["slot_ptr"], axis=-2).reshape(y.shape)
        return y[..., : packed.shape[0]]


def _columns(packed: Packed) -> NDArray[np.int64]:
    """The column (slots, 16) of each slot's lanes."""
    a = packed.arrays
    G, K = a["counts"].shape
    slots = np.repeat(np.tile(np.arange(1, K + 1), G), a["counts"].ravel())  # of each cell, in their order
    stripe = np.repeat(a["stripes"][: len(slots)].astype(np.int64), slots)
    columns: NDArray[np.int64] = stripe[:, None] * STRIPE + a["indices"][: len(stripe)]
    return columns
