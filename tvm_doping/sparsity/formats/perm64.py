"""perm64: two nonzeros a lane under a sliding window of 64 columns, what AVX-512 can look up in bfloat16."""

from __future__ import annotations

from tvm_doping.sparsity.formats.perm import Perm32, Reach


class Perm64(Perm32):
    """The arrays of perm32, with two entries for each lane of a slot, next to each other:

    windows (slots,)       first column of the slot's window, a multiple of 16
    indices (slots, 32)    uint8, column - window, 0..63; lane l has entries 2 l and 2 l + 1
    values (slots, 32)     as they are stored; its kernel takes bf16, and a slot then 98 bytes for up to 32 nonzeros
    """

    name = "perm64"
    reach = Reach(window=64, step=16, each=2)
