"""perm8: eight rows side by side under a sliding window of eight columns, what AVX2 looks up in one register."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tvm_doping.sparsity.formats.base import Array, Packed
from tvm_doping.sparsity.formats.perm import Perm32, Reach

_BITS = 4  # of an index, of which `vpermps` reads the lower three


class Perm8(Perm32):
    """The arrays of perm32 for groups of 8 rows, but for the indices, which take 4 bits:

    rows (G*8,), slot_ptr (G+1,) int32
    windows (slots,)                 first column of the slot's window, whichever
    indices (slots / multiple, 8)    uint8 or uint16 for a `multiple` of 2 or 4: those of a lane in so many slots, the first slot's
                                     lowest, so that one load and shifts give all of them
    values (slots, 8)                float32

    A slot takes 38 bytes. A random S of 5 % fills 0.36 of them, one of 10 % 0.49, one of 20 % 0.64.
    """

    name = "perm8"
    reach = Reach(lanes=8, window=8, step=1, each=1)
    multiples = (2, 4)

    def _pack(self, S: sparse.csr_array, params: dict[str, int]) -> dict[str, Array]:
        arrays = super()._pack(S, params)
        multiple = params["multiple"]
        word = np.dtype(f"uint{_BITS * multiple}").type
        rounds = arrays["indices"].reshape(-1, multiple, self.reach.lanes).astype(word)
        arrays["indices"] = np.bitwise_or.reduce(rounds << _shifts(multiple).astype(word), axis=1)
        return arrays

    def _unpack(self, packed: Packed) -> sparse.csr_array:
        return super()._unpack(_spread(packed))

    def _matvec(self, packed: Packed, x: NDArray[np.floating]) -> NDArray[np.floating]:
        return super()._matvec(_spread(packed), x)


def _spread(packed: Packed) -> Packed:
    """The same matrix with the indices of perm32, a byte each."""
    a, multiple = packed.arrays, packed.params["multiple"]
    indices = (a["indices"][:, None].astype(np.uint32) >> _shifts(multiple)) & (2**_BITS - 1)
    return replace(packed, arrays={**a, "indices": indices.reshape(-1, a["indices"].shape[1])})


def _shifts(multiple: int) -> Array:
    return _BITS * np.arange(multiple, dtype=np.uint32)[:, None]
