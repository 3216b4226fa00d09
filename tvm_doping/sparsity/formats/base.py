"""What a storage format is, and what it makes of S: a named set of arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from tvm_doping.errors import InvalidInput
from tvm_doping.sparsity.values import ValueType, decode, encode
from tvm_doping.structures.sparse import canonical

Array = NDArray[Any]

_TERMS = 2**24  # of one step of `matvec`

LANES = 16  # float32 lanes of the widest vector register a format is laid out for


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """S (m, n) in a storage format: C-contiguous arrays, each with at least one element.

    values  how the array "values" is stored; int8 brings "scales", one a run of values (`Format.pointers`).
    """

    format: str
    shape: tuple[int, int]
    nnz: int
    arrays: dict[str, Array]
    params: dict[str, int] = field(default_factory=dict)
    values: ValueType = "fp32"

    @property
    def bytes(self) -> int:
        """Bytes stored: values, indices, pointers and padding."""
        return sum(array.nbytes for array in self.arrays.values())


class Format(ABC):
    """A way to store S. `unpack(pack(S))` is S exactly, up to the rounding of values stored narrow; `matvec` works on the
    packed arrays themselves.

    pointers  the array that says where the runs of values begin that share a scale, in int8: a row, or a group of rows.
    """

    name: str
    pointers: ClassVar[str]
    defaults: ClassVar[Mapping[str, int]] = {}

    def pack(self, S: sparse.csr_array, *, values: ValueType = "fp32", **params: int) -> Packed:
        """S in this format, its values stored as that type; `params` override `defaults`.

        InvalidInput for a parameter unknown or unusable, and for values that the type does not hold.
        """
        unknown = sorted(set(params) - set(self.defaults))
        if unknown:
            raise InvalidInput(
                f"format {self.name}",
                f"parameters among {sorted(self.defaults)}",
                f"{unknown}",
                "Leave the others out.",
            )
        S, chosen = canonical(S), {**self.defaults, **{name: int(value) for name, value in params.items()}}
        arrays = self._pack(S, chosen)
        arrays |= encode(arrays["values"], self._runs(arrays), values)
        arrays = {name: np.ascontiguousarray(_some(array)) for name, array in arrays.items()}
        return Packed(
            format=self.name, shape=S.shape, nnz=int(S.nnz), arrays=arrays, params=chosen, values=values
        )

    def unpack(self, packed: Packed) -> sparse.csr_array:
        """The canonical S that was packed, entry for entry, as its values were rounded."""
        return self._unpack(self._own(packed))

    def matvec(self, packed: Packed, x: ArrayLike) -> NDArray[np.floating]:
        """y = x S^T for x (..., n) -> y (..., m), in the float type of x (float32 for others)."""
        x = np.asarray(x)
        if not np.issubdtype(x.dtype, np.floating):
            x = x.astype(np.float32)
        if x.ndim < 1 or x.shape[-1] != packed.shape[1]:
            raise InvalidInput(
                "x",
                f"{packed.shape[1]} as its last dimension",
                f"shape {x.shape}",
                "Pass vectors as long as S has columns.",
            )
        packed = self._own(packed)
        flat = x.reshape(-1, packed.shape[1])
        # Each vector takes as many terms as are stored: some at a time, or a long sequence would fill memory.
        some = max(1, _TERMS // packed.arrays["values"].size)
        parts = [self._matvec(packed, flat[i : i + some]) for i in range(0, max(len(flat), 1), some)]
        return np.concatenate(parts).reshape(*x.shape[:-1], packed.shape[0])

    @abstractmethod
    def _pack(self, S: sparse.csr_array, params: dict[str, int]) -> dict[str, Array]: ...

    @abstractmethod
    def _unpack(self, packed: Packed) -> sparse.csr_array: ...

    @abstractmethod
    def _matvec(self, packed: Packed, x: NDArray[np.floating]) -> NDArray[np.floating]: ...

    def _own(self, packed: Packed) -> Packed:
        """The same with its values in fp32."""
        if packed.format != self.name:
            raise InvalidInput(
                "packed matrix",
                f"format {self.name}",
                packed.format,
                "Use the entry of FORMATS that `packed.format` names.",
            )
        if packed.values == "fp32":
            return packed
        a = packed.arrays
        plain = decode(a["values"], self._runs(a), packed.values, a.get("scales"))
        return replace(packed, arrays={**a, "values": plain}, values="fp32")

    def _runs(self, arrays: Mapping[str, Array]) -> Array:
        """Where the runs of values begin, and the end of the last one."""
        return arrays[self.pointers]


def column_dtype(n: int) -> type[np.unsignedinteger]:
    """The narrowest type that holds every column number below n."""
    return np.uint16 if n <= 2**16 else np.uint32


def pointers(counts: Array) -> NDArray[np.int32]:
    """(k,) counts -> (k + 1,) where each run starts, and the total."""
    total = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=total[1:])
    if total[-1] >= 2**31:
        raise InvalidInput("S", "fewer than 2**31 stored elements", f"{total[-1]}", "Store it in parts.")
    return total.astype(np.int32)


def sum_runs(terms: NDArray[np.floating], ptr: Array, axis: int) -> NDArray[np.floating]:
    """Sum of each run terms[ptr[i]:ptr[i+1]] along `axis` (negative); 0 for an empty run."""
    shape = list(terms.shape)
    shape[axis] = len(ptr) - 1
    out = np.zeros(shape, terms.dtype)
    filled = np.flatnonzero(np.diff(ptr))
    if len(filled):  # reduceat gives the wrong thing for empty runs, so it sees only the others
        sums = np.add.reduceat(terms, ptr[filled].astype(np.intp), axis=axis)
        np.moveaxis(out, axis, 0)[filled] = np.moveaxis(sums, axis, 0)
    return out


def lanes_by_length(lengths: Array, window: int = 0, size: int = LANES) -> NDArray[np.int32]:
    """The row of each lane of groups of `size`, rows sorted by descending length (stable): all, or each `window` of rows apart."""
    windows = np.arange(len(lengths)) // window if window else np.zeros(len(lengths), np.int64)
    return lanes_of(np.lexsort((-lengths.astype(np.int64), windows)), size)


def lanes_of(order: Array, size: int = LANES) -> NDArray[np.int32]:
    """The row of each lane (G*size,): rows in this order, then the lanes beyond the last row, numbered on."""
    beyond = np.arange(len(order), -(-len(order) // size) * size)
    return np.concatenate([order, beyond]).astype(np.int32)


def _some(array: Array) -> Array:
    return array if array.size else np.zeros((1, *array.shape[1:]), array.dtype)
