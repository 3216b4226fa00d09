"""How S is stored. One row of FORMATS makes a format known."""

from __future__ import annotations

from numpy import floating
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from tvm_doping.errors import InvalidInput
from tvm_doping.sparsity.formats.base import Format, Packed
from tvm_doping.sparsity.formats.block import Block
from tvm_doping.sparsity.formats.csr import CSR
from tvm_doping.sparsity.formats.mma import MMA16
from tvm_doping.sparsity.formats.perm import Perm32
from tvm_doping.sparsity.formats.perm2x32 import Perm2x32
from tvm_doping.sparsity.formats.perm8 import Perm8
from tvm_doping.sparsity.formats.perm64 import Perm64
from tvm_doping.sparsity.formats.perm_expand import Perm32Expand
from tvm_doping.sparsity.formats.sell import SELL
from tvm_doping.sparsity.values import ValueType

FORMATS: dict[str, Format] = {
    "csr": CSR(),
    "sell16": SELL(16),
    "sell32": SELL(32),
    "perm8": Perm8(),
    "perm32": Perm32(),
    "perm32_expand": Perm32Expand(),
    "perm2x32": Perm2x32(),
    "perm64": Perm64(),
    "block4": Block(4),
    "block8": Block(8),
    "block16": Block(16),
    "mma16": MMA16(),
}


def pack(format: str, S: sparse.csr_array, *, values: ValueType = "fp32", **params: int) -> Packed:
    """S in the format of that name, its values stored as that type. InvalidInput for an unknown name or parameter."""
    if format not in FORMATS:
        raise InvalidInput("sparse format", f"one of {', '.join(FORMATS)}", repr(format), "Choose one.")
    return FORMATS[format].pack(S, values=values, **params)


def unpack(packed: Packed) -> sparse.csr_array:
    """The canonical S that was packed, entry for entry, as its values were rounded."""
    return FORMATS[packed.format].unpack(packed)


def matvec(packed: Packed, x: ArrayLike) -> NDArray[floating]:
    """y = x S^T for x (..., n) -> y (..., m), computed on the packed arrays."""
    return FORMATS[packed.format].matvec(packed, x)


__all__ = [
    "CSR",
    "FORMATS",
    "MMA16",
    "SELL",
    "Block",
    "Format",
    "Packed",
    "Perm2x32",
    "Perm8",
    "Perm32",
    "Perm32Expand",
    "Perm64",
    "matvec",
    "pack",
    "unpack",
]
