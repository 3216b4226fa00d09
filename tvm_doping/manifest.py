"""What a compiled model is, as pydantic models: its manifest. How bundle.json holds one or several: document.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tvm_doping.precisions import Precision

Dtype = Literal[
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
]
Size = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """What all parts of a bundle.json have in common: unknown fields are errors, and NaN is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorSpec(Part):
    """One input, state or output. A dimension is a size or a symbol: "T" for time steps, "N" for the batch.

    below: an integer input must lie in 0 .. below-1 (a token looked up in an embedding); None where anything
    goes.
    """

    name: str
    shape: tuple[Size | str, ...]
    dtype: Dtype
    below: int | None = None


class TargetSpec(Part):
    """What the code was made for; `features` (names of /proc/cpuinfo) are required at load."""

    name: str
    mcpu: str = ""
    features: tuple[str, ...]


class LayerReport(Part):
    """One compiled layer, for `inspect`: what it is, how it is stored and computed, and why that was chosen.

    bytes, dense_bytes: weights as stored (indices and padding included; of arrays that layers share, in one of them), and in
    dense fp32;
    values: how those of S and of dense matrices are stored; rounding: |rounded W - W| / |W| (Frobenius) that it cost;
    parameters, dense_parameters: values that training learned, and those of the dense layer.
    """

    name: str
    op: str
    structure: str = ""
    shape: tuple[int, ...] = ()
    kernel: str = ""
    format: str = ""
    values: str = "fp32"
    rounding: float = 0.0
    reason: str = ""
    rejected: tuple[str, ...] = ()
    bytes: Size = 0
    dense_bytes: Size = 0
    parameters: Size = 0
    dense_parameters: Size = 0
    plan: dict[str, Any] = {}

    @property
    def tied(self) -> str:
        """The layer whose weight is this one's too, of an embedding its output layer; "" for a weight of its own."""
        return str(self.plan.get("tied", ""))


def bytes_by_layer(layers: Iterable[str], weights: Mapping[str, Any]) -> dict[str, int]:
    """Layer -> bytes of the arrays "LAYER.ARRAY" among the weights; what several layers share is named after one of them."""
    stored = dict.fromkeys(layers, 0)
    for name, array in weights.items():
        owners = [layer for layer in stored if name.startswith(f"{layer}.")]
        if owners:
            stored[max(owners, key=len)] += int(array.nbytes)
    return stored


class Compression(Part):
    """Dense size over stored size: by parameters (as papers count it) and by bytes (as memory counts it)."""

    by_parameters: float
    by_bytes: float


class RoundingError(Part):
    """What the precision costs: a result with rounded weights against PyTorch's with fp32 ones.

    max_abs: the largest difference; relative: the norm of all differences over that of PyTorch's values.
    """

    max_abs: float
    relative: float


class Model(Part):
    """What holds of a model on every target.

    inputs, state, outputs  `main(*inputs, *state, weights)` returns (*outputs, *new state);
    time_axis    where "T" stands in the first input that has it, None for a model without time;
    streaming    whether steps in a row equal one run over them; no_stream says why not, "" where they do;
    threads      how many of a session it was compiled for;
    precision    how low stored values may go;
    versions     package -> version at compile time; metrics: what the run folder reported, e.g. perplexities;
    tokens       models of text: how it becomes input indices (text.split), else None;
    labels       classifiers: what each of the last axis of the first output stands for, else empty;
    columns      forecasters: what each of the last axis of the first input stands for, else empty.
    """

    name: str
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    state: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    time_axis: int | None
    streaming: bool = True
    no_stream: str = ""
    threads: int = Field(default=1, ge=1)
    precision: Precision = "exact"
    versions: dict[str, str]
    metrics: dict[str, bool | int | float | str | None] = {}
    tokens: Literal["words", "pieces", "characters"] | None = None
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _shapes_agree(self) -> Self:
        for group in (self.inputs, self.state, self.outputs):
            names = [spec.name for spec in group]
            if len(set(names)) != len(names):
                raise ValueError(f"names given once each, not {names}")
        known = {dim for spec in self.inputs for dim in spec.shape if isinstance(dim, str)}
        axes = [spec.shape.index("T") for spec in self.inputs if "T" in spec.shape]
        if self.time_axis != (axes[0] if axes else None):
            raise ValueError(
                f"as time axis that of T in the inputs, {axes[:1] or None}, not {self.time_axis}"
            )
        for spec in self.state:
            if "T" in spec.shape or {dim for dim in spec.shape if isinstance(dim, str)} - known:
                raise ValueError(
                    f"sizes or symbols of the inputs in state {spec.name!r}, not shape {spec.shape}"
                )
        return self


class Code(Part):
    """What was made of it for one target.

    tolerance    |got - golden| <= tolerance * max(1, max|golden|) is what `verify` asks;
    golden_error the largest |got - golden| when the bundle was made, against PyTorch (with the rounded weights, where the
    precision is not exact); None if it could not be run there;
    precision_error  what the precision costs, measured on sample inputs, by output and state;
    records      the tuning records that were used.
    """

    target: TargetSpec
    tolerance: float
    golden_error: float | None
    precision_error: dict[str, RoundingError] = {}
    layers: tuple[LayerReport, ...] = ()
    compression: Compression | None = None
    records: tuple[str, ...] = ()


class Manifest(Code, Model):
    """A model, compiled for one target. weights: the names of its arrays, in the order in which main takes them."""

    weights: tuple[str, ...] = ()
