"""The two ends: every entry a parameter, and none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tvm_doping.errors import InvalidInput
from tvm_doping.structures.base import Float, Float32, Structure, check_shape, matrix, take


@dataclass(frozen=True, eq=False)
class Dense(Structure):
    """W (m, n) itself."""

    W: Float32
    kind: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        object.__setattr__(self, "W", matrix("W", self.W))

    @classmethod
    def nearest(cls, W: ArrayLike) -> Self:
        """W itself."""
        return cls(matrix("W", W))

    @property
    def shape(self) -> tuple[int, int]:
        return self.W.shape[0], self.W.shape[1]

    @property
    def multiplications(self) -> int:
        return self.W.size

    def to_dense(self) -> Float32:
        return self.W.copy()

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"W": self.W}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike], shape: tuple[int, int]) -> Self:
        (W,) = take(arrays, "W")
        out = cls(matrix("W", W))
        check_shape(out, shape)
        return out

    def _matvec(self, x: Float) -> Float:
        return x @ self.W.T.astype(x.dtype)


@dataclass(frozen=True, eq=False, init=False)
class Zero(Structure):
    """The zero matrix (m, n): what a pruned matrix is `Doped` onto."""

    m: int
    n: int
    kind: ClassVar[str] = "zero"

    def __init__(self, shape: tuple[int, int]) -> None:
        if len(shape) != 2 or min(shape) < 1:
            raise InvalidInput("shape", "at least one row and one column", f"{tuple(shape)}", "Pass (m, n).")
        object.__setattr__(self, "m", int(shape[0]))
        object.__setattr__(self, "n", int(shape[1]))

    @property
    def shape(self) -> tuple[int, int]:
        return self.m, self.n

    @classmethod
    def nearest(cls, W: ArrayLike) -> Self:
        """Zero of W's shape."""
        m, n = matrix("W", W).shape
        return cls((m, n))

    @property
    def multiplications(self) -> int:
        return 0

    def to_dense(self) -> Float32:
        return np.zeros(self.shape, np.float32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike], shape: tuple[int, int]) -> Self:
        return cls(shape)

    def _matvec(self, x: Float) -> Float:
        return np.zeros((*x.shape[:-1], self.shape[0]), x.dtype)
