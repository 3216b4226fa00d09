"""TVM's runtime library, loaded without torch and without the compiler: its quirks stand here."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

from tvm_doping.errors import BundleError

# DLPack's CPU and CUDA; device 0; the VM's allocator that keeps freed blocks for the next step.
_CPU, _CUDA, _FIRST, _POOLED = 1, 2, 0, 2


class _NoTorch(MetaPathFinder):
    """Hides torch from one thread while tvm_ffi is imported: it imports torch, where installed, for 2 s and
    200 MB.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == "torch" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError("torch is not needed here", name=name)
        return None


def _import_ffi() -> Any:
    hide = _NoTorch()
    sys.meta_path.insert(0, hide)
    try:
        import tvm_ffi
    finally:
        sys.meta_path.remove(hide)
    return tvm_ffi


def _load_runtime() -> None:
    """libtvm_runtime.so holds the Relax VM. RTLD_GLOBAL: the bundle's library finds TVM's symbols in it."""
    if "tvm" in sys.modules:
        return  # it has loaded the same library
    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        raise BundleError(
            "the TVM runtime", "the package apache-tvm", "no such package", "pip install apache-tvm"
        )
    places = [Path(spec.origin).parent / "lib"]
    if os.environ.get("TVM_LIBRARY_PATH"):
        places.insert(0, Path(os.environ["TVM_LIBRARY_PATH"]))
    for place in places:
        if (place / "libtvm_runtime.so").is_file():
            ctypes.CDLL(str(place / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)
            return
    raise BundleError(
        "the TVM runtime",
        "libtvm_runtime.so",
        f"nothing of that name in {', '.join(map(str, places))}",
        "Reinstall apache-tvm.",
    )


def load_cuda_runtime() -> None:
    """libtvm_runtime_cuda.so, which needs the driver and CUDA's runtime library. BundleError where one is missing."""
    spec = importlib.util.find_spec("tvm")
    place = Path(spec.origin).parent / "lib" if spec and spec.origin else Path()
    _load_cudart()
    try:
        ctypes.CDLL(str(place / "libtvm_runtime_cuda.so"), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise BundleError(
            "TVM's runtime for CUDA",
            "NVIDIA's driver (libcuda.so.1) and CUDA's runtime library (libcudart.so.13)",
            str(error)[:200],
            "Install the driver, and pip install nvidia-cuda-runtime.",
        ) from error


def _load_cudart() -> None:
    """CUDA's runtime library of a package of NVIDIA's, if there is one: else the system's own is found. One that is loaded, as by
    torch, stays the only one: streams and errors of two copies are not each other's.
    """
    name = "libcudart.so.13"
    try:
        ctypes.CDLL(name, ctypes.RTLD_GLOBAL | os.RTLD_NOLOAD)
    except OSError:
        spec = importlib.util.find_spec("nvidia")
        for packages in (spec.submodule_search_locations if spec else None) or ():
            library = Path(packages) / "cu13" / "lib" / name
            if library.is_file():
                ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
                return


_ffi = _import_ffi()
_load_runtime()
Function = _ffi.Function
from_dlpack = _ffi.from_dlpack
as_numpy = np.from_dlpack
_view = _ffi.get_global_func("runtime.TVMTensorCreateView")
item = _ffi.get_global_func("ffi.ArrayGetItem")  # results[i], at a third of the price of Array.__getitem__


def open_library(path: Path) -> Any:
    """A compiled library, loaded into this process."""
    return _ffi.load_module(str(path.resolve()))  # a name without a slash would be searched for, not opened


def new_machine(library: Any, gpu: bool = False) -> Any:
    """A Relax VM of its own over a library; machine["main"] is its function, for tensors of the CPU or of the first GPU."""
    machine = library["vm_load_executable"]()
    devices = [_CUDA, _CPU] if gpu else [_CPU]  # the VM keeps shapes on the last one
    machine["vm_initialization"](*(word for device in devices for word in (device, _FIRST, _POOLED)))
    return machine


def pack_weights(arrays: list[Any]) -> Any:
    """The weights as the one tuple that `main` takes.

    Converted once: a Python tuple would be converted at every call.
    """
    return _ffi.convert([from_dlpack(array) for array in arrays])


def as_one(tensors: Sequence[Any]) -> Any:
    """The same for tensors that are where `main` runs already."""
    return _ffi.convert(list(tensors))


def allocate(shape: Sequence[int], dtype: str, device: tuple[int, int]) -> Any:
    """A tensor of its own in a device's memory, by DLPack's kind and number."""
    make = _ffi.get_global_func("runtime.TVMTensorAllocWithScope")
    return make(
        _ffi.Shape(shape),
        _ffi.dtype(dtype),
        _ffi.device("cuda" if device[0] == _CUDA else "cpu", device[1]),
        None,
    )


def view(tensor: Any, shape: Sequence[int], dtype: str) -> Any:
    """The first bytes of a tensor's memory as another, which holds the memory too."""
    return _ffi.get_global_func("runtime.TVMTensorCreateView")(
        tensor, _ffi.Shape(shape), _ffi.dtype(dtype), 0
    )


def current_stream() -> int:
    """The stream of the first GPU that this thread's calls of TVM's functions launch on."""
    return int(_ffi.get_raw_stream(_ffi.device("cuda", _FIRST)) or 0)


def on_stream(stream: int) -> Any:
    """A context in which they launch on another."""
    return _ffi.use_raw_stream(_ffi.device("cuda", _FIRST), stream)


def weights_of(packed: Any) -> list[Any]:
    """The tensors that `pack_weights` packed."""
    return list(packed)
