"""SELL: 16 or 32 rows of like length side by side, one row a vector lane, or a lane of a GPU's warp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tvm_doping.errors import InvalidInput
from tvm_doping.sparsity.formats.base import Array, Format, Packed, lanes_by_length, pointers, sum_runs
from tvm_doping.structures.sparse import from_coordinates, row_of_entry


class SELL(Format):
    """rows (G*b,), group_ptr (G+1,) in slots: int32; indices (slots, b) uint16; values (slots, b) float32; b rows a group.

    Rows are sorted by descending length (stable); `rows` has the row of each lane, and lanes beyond the last
    row count on from m. `window`: only rows of the same `window` consecutive ones (a multiple of b; 0: all rows)
    are sorted, so that threads which take runs of groups take runs of rows. A lane is padded with its row's last
    column (0 if empty) and the value 0.
    Source: SELL-C-sigma of Kreutzer et al., SIAM J. Sci. Comput. 36(5), 2014, arXiv 1307.6209.
    """

    pointers = "group_ptr"
    defaults: ClassVar[Mapping[str, int]] = {"window": 0}

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.name = f"sell{rows}"

    def _pack(self, S: sparse.csr_array, params: dict[str, int]) -> dict[str, Array]:
        (m, n), b = S.shape, self.rows
        if params["window"] < 0 or params["window"] % b:
            raise InvalidInput(
                "window",
                f"a multiple of {b}, or 0",
                str(params["window"]),
                "Leave it out to sort all rows.",
            )
        if n > 2**16:
            raise InvalidInput(
                "S", f"at most 65536 columns for format {self.name}", f"{n}", "Use csr or perm32."
            )
        lengths = np.diff(S.indptr).astype(np.int64)
        lanes = lanes_by_length(lengths, params["window"], b)
        rank = np.empty(len(lanes), np.int64)
        rank[lanes] = np.arange(len(lanes))
        lane_length, last = np.zeros(len(lanes), np.int64), np.zeros(len(lanes), np.uint16)
        lane_length[rank[:m]] = lengths
        last[rank[:m][lengths > 0]] = S.indices[S.indptr[1:][lengths > 0] - 1]
        slots = lane_length.reshape(-1, b).max(1)
        group_ptr = pointers(slots)
        indices = np.repeat(last.reshape(-1, b), slots, axis=0)
        values = np.zeros(indices.shape, np.float32)
        row = row_of_entry(S)
        slot = group_ptr[rank[row] // b] + np.arange(S.nnz) - S.indptr[row]
        lane = rank[row] % b
        indices[slot, lane], values[slot, lane] = S.indices, S.data
        return {"rows": lanes, "group_ptr": group_ptr, "indices": indices, "values": values}

    def _unpack(self, packed: Packed) -> sparse.csr_array:
        a, b = packed.arrays, self.rows
        slots = np.diff(a["group_ptr"])
        rows = np.repeat(a["rows"].reshape(-1, b), slots, axis=0)
        total = len(rows)
        return from_coordinates(
            rows.ravel(), a["indices"][:total].ravel(), a["values"][:total].ravel(), packed.shape
        )

    def _matvec(self, packed: Packed, x: NDArray[np.floating]) -> NDArray[np.floating]:
        a = packed.arrays
        lanes = sum_runs(x[..., a["indices"]] * a["values"].astype(x.dtype), a["group_ptr"], axis=-2)
        y = np.empty((*x.shape[:-1], len(a["rows"])), x.dtype)
        y[..., a["rows"]] = lanes.reshape(y.shape)
        return y[..., : packed.shape[0]]
