"""Arrays in the GPU's memory: those that come in by DLPack, those that go out, and memory that is used again."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from tvm_doping._runtime import allocate, current_stream, from_dlpack, view
from tvm_doping.arrays import ALIGNMENT
from tvm_doping.cuda.library import Cuda
from tvm_doping.cuda.order import Order
from tvm_doping.errors import SessionError

DEVICE = (2, 0)  # DLPack's kDLCUDA, the first GPU
_LEGACY, _NO_ORDER = 1, -1  # DLPack's number of the legacy default stream, and what asks for none


class GpuArray:
    """A result in the GPU's memory: `torch.from_dlpack(y)`, `cupy.from_dlpack(y)` take it without a copy, on any stream.

    Its memory is used again once nobody holds it. What reads it on another stream than the session's must have ended by then.
    """

    def __init__(self, library: Cuda, tensor: Any, order: Order) -> None:
        self._cuda, self._tensor, self._order = library, tensor, order
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        self.dtype = np.dtype(str(tensor.dtype))

    def __dlpack_device__(self) -> tuple[int, int]:
        return DEVICE

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        if stream != _NO_ORDER:
            self._order.reach(_LEGACY if stream is None else stream)
        return self._tensor.__dlpack__(**options)

    def numpy(self) -> np.ndarray:
        """A copy on the host; waits until it is there."""
        return to_host(self._cuda, [self._tensor], self._order, current_stream())[0]

    def __repr__(self) -> str:
        return f"<GpuArray {self.dtype} {self.shape}>"


class Blocks:
    """Memory of the GPU that a session uses again, in the order of its calls: cudaMalloc and cudaFree would wait for the GPU."""

    def __init__(self) -> None:
        self._free_or_not: dict[int, list[Any]] = {}

    def take(self, shape: Sequence[int], dtype: str) -> Any:
        """A tensor whose contents are any; its memory is taken again when neither it nor an array of DLPack's holds it."""
        size = max(ALIGNMENT, prod(shape) * np.dtype(dtype).itemsize)
        room = 1 << (size - 1).bit_length()
        blocks = self._free_or_not.setdefault(room, [])
        block = next((block for block in blocks if _holders(block) == 1), None)
        if block is None:
            block = allocate((room,), "uint8", DEVICE)
            blocks.append(block)
        return view(block, shape, dtype)


def _holders(tensor: Any) -> int:
    """How many objects of TVM's hold a tensor: views of it, and DLPack's arrays of these, do; the lower half of its first word."""
    return ctypes.c_uint32.from_address(tensor.__chandle__()).value


def stream_of(arrays: Sequence[Any]) -> int:
    """The stream that the caller works on: torch's or CuPy's current one where the arrays are theirs, else the one that
    `tvm_ffi.use_raw_stream` set, which is at first the legacy default stream.
    """
    for array in arrays:
        package = type(array).__module__.partition(".")[0]
        module = sys.modules.get(package)
        if package == "torch" and getattr(array, "is_cuda", False):
            return int(module.cuda.current_stream(array.device).cuda_stream)  # type: ignore[union-attr]
        if package == "cupy":
            return int(module.cuda.get_current_stream().ptr)  # type: ignore[union-attr]
    return current_stream()


def arrived(name: str, array: Any, stream: int) -> Any:
    """A tensor of TVM's over an array in the GPU's memory, ready in the order of the stream; others as they are.

    Raises SessionError for an array of another GPU, and one that its library does not lend.
    """
    if isinstance(array, np.ndarray) or not hasattr(array, "__dlpack__"):
        return array
    kind, number = map(int, array.__dlpack_device__())
    if (kind, number) != DEVICE:
        got = f"one on device {number} of kind {kind} (DLPack's numbers)"
        raise _refused(name, got, "Move it: x.cuda(), or x.cpu().numpy().")
    try:
        tensor = from_dlpack(_Lent(array, stream or _LEGACY))
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise _refused(name, str(error).strip()[:200], "Give x.detach().contiguous().") from error
    if not tensor.is_contiguous():
        raise _refused(name, f"one of strides {tuple(tensor.strides)}", "Give x.contiguous().")
    return tensor


class _Lent:
    """An array that is asked for in the order of a stream."""

    def __init__(self, array: Any, stream: int) -> None:
        self._array, self._stream = array, stream

    def __dlpack__(self) -> Any:
        return self._array.__dlpack__(stream=self._stream)


def stand_in(array: Any) -> Any:
    """An array of the same shape and dtype whose values are zeros, for checks that read no values; others as they are."""
    if isinstance(array, np.ndarray) or not hasattr(array, "data_ptr"):
        return array
    return np.broadcast_to(np.zeros((), str(array.dtype)), tuple(array.shape))


def nbytes(tensor: Any) -> int:
    """The size of a tensor of TVM's."""
    return int(tensor.numel()) * int(tensor.dtype.itemsize)


def put(library: Cuda, array: Any, tensor: Any, stream: int) -> None:
    """Copy a NumPy array or a tensor to a tensor on the GPU, in the order of the stream."""
    if isinstance(array, np.ndarray):
        array = np.ascontiguousarray(array)
        # from memory that is not pinned: it may be changed once this has returned
        library.copy(tensor.data_ptr(), array.ctypes.data, array.nbytes, stream)
    else:
        library.copy(tensor.data_ptr(), array.data_ptr(), nbytes(array), stream)


def to_host(library: Cuda, tensors: Sequence[Any], order: Order, stream: int) -> list[np.ndarray]:
    """Copies of tensors on the host, once the stream has done its work."""
    arrays = [np.empty(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors]
    with order.on(stream):
        for array, tensor in zip(arrays, tensors, strict=True):
            library.copy(array.ctypes.data, tensor.data_ptr(), array.nbytes, stream)
    library.synchronize(stream)
    return arrays


def overlap(a: Any, b: Any) -> bool:
    """Whether two tensors share memory."""
    return bool(a.data_ptr() < b.data_ptr() + nbytes(b) and b.data_ptr() < a.data_ptr() + nbytes(a))


def is_aligned(tensor: Any) -> bool:
    """Whether kernels may read it where it is."""
    return int(tensor.data_ptr()) % ALIGNMENT == 0


def _refused(name: str, got: str, remedy: str) -> SessionError:
    return SessionError(
        f"input {name!r}", "a NumPy array, or a contiguous one on the session's GPU (device 0)", got, remedy
    )
