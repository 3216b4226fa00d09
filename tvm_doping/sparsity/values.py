"""How stored values are rounded: fp16, bf16, or int8 with one scale a run of them. fp32 is stored as it is."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tvm_doping.errors import InvalidInput
from tvm_doping.precisions import PRECISIONS, Precision

__all__ = [
    "PRECISIONS",
    "VALUE_BYTES",
    "VALUE_TYPES",
    "Precision",
    "ValueType",
    "decode",
    "encode",
    "round_bf16",
]

ValueType = Literal["fp32", "fp16", "bf16", "int8"]
VALUE_TYPES: tuple[ValueType, ...] = get_args(ValueType)
VALUE_BYTES: dict[str, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}

Array = NDArray[Any]
_INT8 = 127  # symmetric: -128 is not used


def encode(values: Array, runs: Array, kind: ValueType) -> dict[str, Array]:
    """values (k, ...) float32 -> {"values": rounded to nearest, same shape}, and for int8 "scales" (R,) float32.

    runs (R+1,)  where the runs begin along the first axis; what lies behind the last run must be 0.
    The arrays are float32, float16, uint16 (bf16: the upper half of a float32) or int8 (value = scale * int8, and the largest
    magnitude of a run is 127 scales).

    InvalidInput for an unknown kind, for values that are not finite, and for those beyond what fp16 holds.
    """
    if kind not in VALUE_TYPES:
        raise InvalidInput("type of values", f"one of {', '.join(VALUE_TYPES)}", repr(kind), "Choose one.")
    if kind == "fp32":
        return {"values": values}
    largest = float(np.max(np.abs(values), initial=0.0))
    limit = float(np.finfo(np.float16).max) if kind == "fp16" else 3.38e38
    if not largest <= limit:
        raise InvalidInput(
            f"weights to store in {kind}",
            f"finite values up to {limit:.4g}",
            f"{largest:.4g}",
            "Store them in fp32 (precision exact), or in bf16 if they are only large.",
        )
    if kind == "fp16":
        return {"values": values.astype(np.float16)}
    if kind == "bf16":
        return {"values": (round_bf16(values).view(np.uint32) >> 16).astype(np.uint16)}
    peaks = np.zeros(len(runs) - 1, np.float32)
    filled = np.flatnonzero(np.diff(runs))
    if len(filled):  # reduceat gives the wrong thing for empty runs, so it sees only the others
        rows = np.abs(values[: runs[-1]]).reshape(int(runs[-1]), -1).max(axis=1)
        peaks[filled] = np.maximum.reduceat(rows, runs[filled].astype(np.intp))
    # Of the smallest numbers the quotient would be 0, or no longer normal.
    scales = np.where(peaks > 1e-30, peaks / np.float32(_INT8), np.float32(1)).astype(np.float32)
    rounded = np.rint(values / _of_entries(scales, runs, values.shape))
    return {"values": np.clip(rounded, -_INT8, _INT8).astype(np.int8), "scales": scales}


def decode(values: Array, runs: Array, kind: ValueType, scales: Array | None = None) -> NDArray[np.float32]:
    """The float32 values that `encode` stored, rounded as they are."""
    if kind == "bf16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if kind == "int8":
        assert scales is not None
        scaled: NDArray[np.float32] = values.astype(np.float32) * _of_entries(scales, runs, values.shape)
        return scaled
    return values.astype(np.float32)


def round_bf16(x: Array) -> NDArray[np.float32]:
    """x rounded to bfloat16 (nearest, ties to even), as float32; NaN stays NaN, and what is nearer to 2**128 than to the largest
    bfloat16 becomes infinite.
    """
    x = np.ascontiguousarray(x, np.float32)
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32))


def _of_entries(scales: Array, runs: Array, shape: tuple[int, ...]) -> Array:
    """The scale of each entry along the first axis, shaped to multiply with values; 1 behind the last run."""
    each = np.repeat(scales, np.diff(runs))
    padded = np.append(each, np.ones(shape[0] - len(each), np.float32))
    return padded.reshape(-1, *[1] * (len(shape) - 1))
