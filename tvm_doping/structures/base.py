"""What every structured matrix can do, and how much it compresses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tvm_doping.errors import InvalidInput

Float = NDArray[np.floating]
Float32 = NDArray[np.float32]


class Structure(ABC):
    """A matrix W (m, n) of few parameters; its arrays are float32 and it is never changed."""

    kind: ClassVar[str]
    # Each family's classmethod nearest(W, ...) -> Self takes the arguments that fix its own sizes.
    nearest: ClassVar[Callable[..., Any]]

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(m, n) of W."""

    @abstractmethod
    def to_dense(self) -> Float32:
        """W (m, n), float32, computed in float32 as the training frameworks do."""

    @property
    @abstractmethod
    def multiplications(self) -> int:
        """Multiplications in one `matvec` of one vector."""

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The parameters by name: what is stored."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike], shape: tuple[int, int]) -> Self:
        """The structure whose `arrays()` these are. InvalidInput when they do not make an (m, n)."""

    @abstractmethod
    def _matvec(self, x: Float) -> Float: ...

    @property
    def parameters(self) -> int:
        """Numbers that training sets: the elements of `arrays()` (indices are not counted)."""
        return sum(array.size for array in self.arrays().values())

    def matvec(self, x: ArrayLike) -> Float:
        """y = x W^T for x (..., n) -> y (..., m), in the float type of x (float32 for others)."""
        x = np.asarray(x)
        if not np.issubdtype(x.dtype, np.floating):
            x = x.astype(np.float32)
        if x.ndim < 1 or x.shape[-1] != self.shape[1]:
            raise InvalidInput(
                "x",
                f"{self.shape[1]} as its last dimension",
                f"shape {x.shape}",
                "Pass vectors as long as W has columns.",
            )
        return self._matvec(x)


@dataclass(frozen=True, kw_only=True)
class Compression:
    """How much smaller than dense: `by_parameters` counts numbers, `by_bytes` what is stored, if known."""

    dense: int
    parameters: int
    bytes: int | None = None

    @property
    def by_parameters(self) -> float:
        return self.dense / self.parameters if self.parameters else inf

    @property
    def by_bytes(self) -> float | None:
        """Dense float32 bytes / bytes stored, indices and padding included."""
        if self.bytes is None:
            return None
        return 4 * self.dense / self.bytes if self.bytes else inf


def compression(*structures: Structure, bytes: int | None = None) -> Compression:
    """The compression of one structure, or of several together; `bytes` is what their packed formats take."""
    return Compression(
        dense=sum(s.shape[0] * s.shape[1] for s in structures),
        parameters=sum(s.parameters for s in structures),
        bytes=bytes,
    )


def matrix(name: str, array: ArrayLike) -> Float32:
    """A C-contiguous float32 copy of a matrix with no empty side. InvalidInput when it is none.

    A copy, since the array may be the memory of a parameter that goes on being trained.
    """
    out = np.array(array, np.float32, order="C")
    if np.ndim(array) != 2 or not out.size:
        raise InvalidInput(
            name,
            "a matrix with at least one row and one column",
            f"shape {np.shape(array)}",
            "Reshape or transpose it.",
        )
    return out


def take(arrays: Mapping[str, ArrayLike], *names: str) -> list[ArrayLike]:
    """The arrays of these names, in order. InvalidInput names the first that is missing."""
    for name in names:
        if name not in arrays:
            raise InvalidInput(
                f"array {name}", "to be stored", f"only {sorted(arrays)}", "Pass what arrays() returned."
            )
    return [arrays[name] for name in names]


def check_shape(structure: Structure, shape: tuple[int, int]) -> None:
    """InvalidInput unless the structure is of this shape."""
    if structure.shape != tuple(shape):
        raise InvalidInput(
            f"{structure.kind} arrays",
            f"to make a matrix of shape {tuple(shape)}",
            f"{structure.shape}",
            "Pass the arrays and the shape of one matrix.",
        )
