"""All that is timed, each in a file: it takes a subject and answers calls of T steps, carrying the state."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from tvm_doping.bench.engines.stream import Engine, Stream
from tvm_doping.errors import BenchError

if TYPE_CHECKING:
    from tvm_doping.bench.subject import Subject

__all__ = ["ENGINES", "Engine", "Stream", "make"]

# name -> the module of its `engine(subject, ...)`, imported when asked for; its precision.
ENGINES: dict[str, tuple[str, str]] = {
    "onnxruntime": ("onnxruntime_", "fp32"),
    "onnxruntime-int8": ("onnxruntime_", "int8"),
    "openvino": ("openvino_", "fp32"),
    "torch": ("torch_", "fp32"),
    "torch-int8": ("torch_", "int8"),
    "tvm-dense": ("tvm_dense", "fp32"),
    "gemv-floor": ("gemv_floor", "fp32"),
}


def make(name: str, subject: Subject, threads: int) -> Engine:
    """The engine of that name for the subject. Raises BenchError for an unknown name or a missing package."""
    if name not in ENGINES:
        raise BenchError("baseline", f"one of {', '.join(ENGINES)}", repr(name), "Choose among these.")
    module, precision = ENGINES[name]
    try:
        engine: Callable[..., Engine] = import_module(f"{__name__}.{module}").engine
        return engine(subject, threads=threads, precision=precision)
    except ModuleNotFoundError as error:
        raise BenchError(
            f"baseline {name}",
            f"the package {error.name}",
            "none installed",
            "Install the extra: pip install 'tvm-doping[bench]', or leave this baseline out.",
        ) from error
