"""perm32_expand: perm32 whose values are stored without padding, each slot with a mask of the lanes that have one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tvm_doping.sparsity.formats.base import LANES, Array, Packed, pointers
from tvm_doping.sparsity.formats.perm import Perm32

_BITS = (1 << np.arange(LANES)).astype(np.uint16)


class Perm32Expand(Perm32):
    """The arrays of perm32, and in place of its padded values:

    masks (slots,) uint16            bit l: lane l has a value in this slot
    values (nnz + 16,) float32       slot after slot, lane after lane; 16 zeros behind, as the kernel loads whole vectors
    value_ptr (slots / multiple,)    int32, where the values of each `multiple` of slots begin

    A slot takes 21 bytes and 4 for each nonzero, against 82: at a usual 49 % of slots filled 0.62 of it, which is what counts
    once S is larger than the second-level cache (`vexpandps` puts the values into their lanes).
    """

    name = "perm32_expand"

    def _pack(self, S: sparse.csr_array, params: dict[str, int]) -> dict[str, Array]:
        arrays = super()._pack(S, params)
        padded = arrays["values"]
        filled = padded != 0
        starts = pointers(filled.sum(1))
        arrays["masks"] = (filled * _BITS).sum(1).astype(np.uint16)
        arrays["values"] = np.concatenate([padded[filled], np.zeros(LANES, np.float32)])
        arrays["value_ptr"] = starts[: -1 : params["multiple"]]
        return arrays

    def _runs(self, arrays: Mapping[str, Array]) -> Array:
        filled = ((arrays["masks"][:, None] & _BITS) != 0).sum(axis=1)
        return pointers(filled)[arrays["slot_ptr"]]

    def _unpack(self, packed: Packed) -> sparse.csr_array:
        return super()._unpack(_padded(packed))

    def _matvec(self, packed: Packed, x: NDArray[np.floating]) -> NDArray[np.floating]:
        return super()._matvec(_padded(packed), x)


def _padded(packed: Packed) -> Packed:
    """The same matrix with the values of perm32."""
    a = packed.arrays
    filled = (a["masks"][:, None] & _BITS) != 0
    values = np.zeros(a["indices"].shape, np.float32)
    values[filled] = a["values"][: packed.nnz]
    return replace(packed, arrays={**a, "values": values})
