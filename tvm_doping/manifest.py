"""The manifest of a bundle: everything bundle.json says, as pydantic models. Nothing here touches a file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tvm_doping.sparsity.values import Precision

FORMAT_VERSION: Literal[1] = 1

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


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorSpec(_Model):
    """One input, state or output. A dimension is a size or a symbol: "T" for time steps, "N" for the batch.

    below: an integer input must lie in 0 .. below-1 (a token looked up in an embedding); None where anything
    goes.
    """

    name: str
    shape: tuple[Size | str, ...]
    dtype: Dtype
    below: int | None = None


class TargetSpec(_Model):
    """What the code was made for; `features` (names of /proc/cpuinfo) are required at load."""

    name: str
    mcpu: str = ""
    features: tuple[str, ...]


class LayerReport(_Model):
    """One compiled layer, for `inspect`: what it is, how it is stored and computed, and why that was chosen.

    bytes, dense_bytes: weights as stored (indices and padding included), and in dense fp32;
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


class Compression(_Model):
    """Dense size over stored size: by parameters (as papers count it) and by bytes (as memory counts it)."""

    by_parameters: float
    by_bytes: float


class RoundingError(_Model):
    """What the precision costs: a result with rounded weights against PyTorch's with fp32 ones.

    max_abs: the largest difference; relative: the norm of all differences over that of PyTorch's values.
    """

    max_abs: float
    relative: float


class FileRecord(_Model):
    """A file of the bundle: its size and the sha256 of its contents."""

    sha256: str
    bytes: Size


class Manifest(_Model):
    """bundle.json.

    inputs, state, outputs  `main(*inputs, *state, weights)` returns (*outputs, *new state);
    time_axis    where "T" stands in the first input that has it, None for a model without time;
    streaming    whether steps in a row equal one run over them; no_stream says why not, "" where they do;
    tolerance    |got - golden| <= tolerance * max(1, max|golden|) is what `verify` asks;
    threads      how many of a session it was compiled for;
    golden_error the largest |got - golden| when the bundle was made, against PyTorch (with the rounded weights, where the
    precision is not exact); None if it could not be run there;
    precision    how low stored values may go; precision_error: what it costs, measured on sample inputs, by output and state;
    versions     package -> version at compile time; metrics: what the run folder reported, e.g. perplexities;
    tokens       language models: how text becomes input indices (text.split), else None;
    weights      names of the arrays in weights.safetensors, in main's order;
    records      the tuning records that were used;
    files        the other files of the bundle; digest: sha256 of this manifest without the digest.
    """

    format_version: Literal[1] = FORMAT_VERSION
    name: str
    target: TargetSpec
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    state: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    time_axis: int | None
    streaming: bool = True
    no_stream: str = ""
    tolerance: float
    threads: int = Field(default=1, ge=1)
    golden_error: float | None
    precision: Precision = "exact"
    precision_error: dict[str, RoundingError] = {}
    versions: dict[str, str]
    weights: tuple[str, ...] = ()
    layers: tuple[LayerReport, ...] = ()
    compression: Compression | None = None
    metrics: dict[str, bool | int | float | str | None] = {}
    records: tuple[str, ...] = ()
    tokens: Literal["words", "pieces", "characters"] | None = None
    files: dict[str, FileRecord] = {}
    digest: str = ""

    @model_validator(mode="after")
    def _shapes_agree(self) -> Manifest:
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
