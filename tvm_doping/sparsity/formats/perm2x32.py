"""perm2x32: two nonzeros a lane under a sliding window of 64 columns, which two look-ups of 32 reach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tvm_doping.sparsity.formats.base import Array, Packed
from tvm_doping.sparsity.formats.perm import Perm32, Reach


class Perm2x32(Perm32):
    """The arrays of perm32, with two entries for each lane of a slot:

    windows (slots,)       first column of the slot's window, a multiple of 8
    indices (slots, 32)    uint8, column - window, 0..63; those of lane l are 2 l and 2 l + 1: a 16-bit word a lane
    values (slots, 32)     float32; those of lane l are l and 16 + l: a register an entry

    A slot takes 162 bytes. The wider window fills more of a slot, and its registers of x serve two entries a lane: a random S of
    5 % fills 0.63 of them in natural order and 0.71 with alike rows grouped, where perm32 fills 0.53 and 0.58.
    """

    name = "perm2x32"
    reach = Reach(window=64, step=8, each=2)

    def _pack(self, S: sparse.csr_array, params: dict[str, int]) -> dict[str, Array]:
        arrays = super()._pack(S, params)
        return {**arrays, "values": _transposed(arrays["values"], self.reach.lanes, self.reach.each)}

    def _unpack(self, packed: Packed) -> sparse.csr_array:
        return super()._unpack(self._by_lanes(packed))

    def _matvec(self, packed: Packed, x: NDArray[np.floating]) -> NDArray[np.floating]:
        return super()._matvec(self._by_lanes(packed), x)

    def _by_lanes(self, packed: Packed) -> Packed:
        """The same matrix with its values in the order of the indices."""
        values = _transposed(packed.arrays["values"], self.reach.each, self.reach.lanes)
        return replace(packed, arrays={**packed.arrays, "values": values})


def _transposed(values: Array, rows: int, columns: int) -> Array:
    """Each slot's values, as a matrix (rows, columns), transposed."""
    return np.ascontiguousarray(values.reshape(-1, rows, columns).swapaxes(1, 2).reshape(-1, rows * columns))
