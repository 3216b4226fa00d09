"""64-byte aligned NumPy arrays: what TVM's kernels take. NumPy's own arrays are aligned to 16 bytes."""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt

ALIGNMENT = 64


def aligned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """An uninitialised C-contiguous array whose data starts at a multiple of 64 bytes."""
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def aligned_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """The same, filled with zeros."""
    array = aligned_empty(shape, dtype)
    array.fill(0)
    return array


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """A C-contiguous copy of the array whose data starts at a multiple of 64 bytes."""
    copy = aligned_empty(array.shape, array.dtype)
    np.copyto(copy, array)
    return copy


def is_usable(array: np.ndarray) -> bool:
    """Whether TVM may take the array in place: C-contiguous, writable (NumPy lends no other), at a multiple
    of 64 bytes.
    """
    return bool(array.flags.c_contiguous and array.flags.writeable) and array.ctypes.data % ALIGNMENT == 0
