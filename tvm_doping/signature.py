"""Whether arrays fit the shapes that a bundle declares, and what its symbols "T" and "N" then stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tvm_doping.errors import SessionError
from tvm_doping.manifest import TensorSpec


def bind(specs: Sequence[TensorSpec], arrays: Sequence[Any], known: Mapping[str, int]) -> dict[str, int]:
    """Symbol -> size, so that every array fits its spec; SessionError where none does."""
    symbols = dict(known)
    symbols.pop("T", None)
    for spec, array in zip(specs, arrays, strict=True):
        wanted = tuple(symbols.get(dim, dim) if isinstance(dim, str) else dim for dim in spec.shape)
        if not isinstance(array, np.ndarray) or array.dtype != spec.dtype or array.ndim != len(wanted):
            raise mismatch(spec, wanted, array)
        for dim, size in zip(wanted, array.shape, strict=True):
            if (isinstance(dim, int) and dim != size) or size < 1:
                raise mismatch(spec, wanted, array)
            if isinstance(dim, str) and symbols.setdefault(dim, size) != size:
                raise mismatch(
                    spec, tuple(symbols.get(d, d) if isinstance(d, str) else d for d in wanted), array
                )
        if spec.below is not None:
            check_range(spec, array)
    return symbols


def check_range(spec: TensorSpec, array: np.ndarray) -> None:
    """SessionError where an index lies outside its table: the compiled code does not look, it reads there."""
    below = spec.below
    if below is None:
        return
    if array.size == 1:  # one token of one stream: a reduction would cost more than all other checks
        fits = 0 <= array.item() < below
    else:
        fits = bool(np.minimum.reduce(array, axis=None) >= 0 and np.maximum.reduce(array, axis=None) < below)
    if not fits:
        raise SessionError(
            f"input {spec.name!r}",
            f"values in 0..{below - 1}",
            f"{array.min()}..{array.max()}",
            "Map unknown tokens to the unknown token's index.",
        )


def in_order(specs: Sequence[TensorSpec], values: Any) -> list[Any]:
    """A state that is given by name or in order, in order. Raises SessionError unless it is all of it."""
    if isinstance(values, Mapping):
        if set(values) != {spec.name for spec in specs}:
            raise SessionError(
                "state",
                ", ".join(spec.name for spec in specs) or "nothing",
                ", ".join(values),
                "Set all of it at once.",
            )
        return [values[spec.name] for spec in specs]
    if not isinstance(values, Iterable):
        raise SessionError(
            "state",
            "arrays, by name or in order",
            type(values).__name__,
            "To start anew, call reset().",
        )
    arrays = list(values)
    if len(arrays) != len(specs):
        raise SessionError("state", f"{len(specs)} arrays", str(len(arrays)), "Set all of it at once.")
    return arrays


def sizes(spec: TensorSpec, symbols: Mapping[str, int]) -> tuple[int, ...]:
    """The shape, with its symbols replaced."""
    return tuple(dim if isinstance(dim, int) else symbols[dim] for dim in spec.shape)


def timeless(spec: TensorSpec) -> TensorSpec:
    """The spec of one time step."""
    return spec.model_copy(update={"shape": tuple(dim for dim in spec.shape if dim != "T")})


def first_step(spec: TensorSpec) -> tuple[Any, ...]:
    """The index that takes the time axis away."""
    return (slice(None),) * spec.shape.index("T") + (0,) if "T" in spec.shape else (...,)


def mismatch(spec: TensorSpec, shape: Sequence[int | str], array: object) -> SessionError:
    """The error for an array that does not fit: what was needed, what came."""
    got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
    text = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    if isinstance(array, np.ndarray) and 0 in array.shape:
        remedy = "Every size must be at least 1."
    elif isinstance(array, np.ndarray) and array.ndim != len(shape):
        remedy = "step() takes arrays without the time axis, run() with it."
    elif isinstance(array, np.ndarray) and array.dtype == spec.dtype:
        remedy = "Give that shape; the batch is fixed by the first input, until reset()."
    else:
        remedy = f"Convert it: np.asarray(x, {spec.dtype!r})."
    return SessionError(repr(spec.name), f"a NumPy array {spec.dtype} ({text})", got, remedy)
