"""What a file of tuning records says, as pydantic models. Nothing here touches a file."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tvm_doping.sparsity import FORMATS
from tvm_doping.sparsity.dots import DotName
from tvm_doping.sparsity.values import Precision, ValueType

# Version 1 is the same without the grids of GPUs.
FORMAT_VERSION: Literal[2] = 2
READ_VERSIONS = (1, FORMAT_VERSION)
DENSE = "dense"  # the format, in a record, of a weight that is multiplied out
Operation = Literal["lstm", "linear"]
# The weights of each operation, as its plan calls their products.
PRODUCTS: dict[str, tuple[str, ...]] = {"lstm": ("input", "recurrent"), "linear": ("product",)}
# What CUDA kernels read an S of; the one for tensor cores has narrow values alone.
_GPU_FORMATS, _TENSOR, _NARROW = ("sell32", "mma16"), "mma16", ("fp16", "bf16")
_LARGEST_BATCH = 64
_WARP, _MOST_THREADS = 32, 1024

Size = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Microseconds = Annotated[float, Field(gt=0)]


class Strict(BaseModel):
    """Frozen, without fields that nobody asked for, and without infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Device(Strict):
    """The machine of the measurements: its target and caches (bytes) decide where records serve.

    cpu     what names it: its CPU, of a GPU's target the GPU; cores: of that, a GPU's multiprocessors.
    """

    target: str
    cpu: str
    cores: Count
    l1: Size
    l2: Size
    l3: Size


class Weight(Strict):
    """A weight (rows, columns) of a layer, and the statistics of its S.

    kind     of the structured part, dims: its own sizes (kernels.plan.Part);
    nnz      nonzeros of S; pattern: which of the training's patterns it keeps, "none" where it is empty;
    fill     nonzeros over slots where 16 rows of like length lie side by side: low where rows differ. 1 where S is empty.
    """

    rows: Count
    columns: Count
    kind: Literal["kronecker", "low_rank", "hybrid", "dense", "zero"]
    dims: tuple[Size, ...] = ()
    nnz: Size = 0
    pattern: str = "none"
    fill: float = Field(default=1.0, ge=0, le=1)


class Key(Strict):
    """What a record is looked up by.

    batch    the class of the number of streams (`batch_class`); threads: of a session; precision: how low values may go.
    """

    weights: dict[str, Weight]
    precision: Precision = "exact"
    batch: Count = 1
    threads: Count = 1


class Way(Strict):
    """How one product runs: the format of S (None where it is empty), its packing and stripes (kernels.plan.Product), the type of
    values, the instruction that multiplies them, and the order of a Kronecker product."""

    format: str | None = None
    params: dict[str, int] = {}
    stripes: Count = 1
    values: ValueType = "fp32"
    dot: DotName = ""
    order: Literal["left", "right"] = "left"

    @model_validator(mode="after")
    def _known(self) -> Way:
        if self.format in (None, DENSE):
            allowed: set[str] = set()
        elif self.format in FORMATS:
            allowed = set(FORMATS[self.format].defaults)
        else:
            raise ValueError(f"a format among {', '.join((*FORMATS, DENSE))}, not {self.format!r}")
        if unknown := sorted(set(self.params) - allowed):
            raise ValueError(f"parameters of {self.format} among {sorted(allowed)}, not {unknown}")
        return self


class GridNumbers(Strict):
    """What is decided of the numbers of a CUDA kernel (kernels.plan.Grid): its limits are the target's."""

    parts: Count
    threads: Annotated[int, Field(ge=_WARP, le=_MOST_THREADS, multiple_of=_WARP)]
    tile_from: Count


class Numbers(Strict):
    """The numbers of the kernel's Config (kernels.plan), which the products of a layer share; on a GPU its grid alone."""

    lanes: Count
    registers: Size
    tile: Size = 0
    tile_from: Size = 0
    steps: Size = 0
    steps_from: Size = 0
    shared: bool = False
    grid: GridNumbers | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> Numbers:
        if self.grid is None and not self.registers:
            raise ValueError("registers of a CPU, or a grid of a GPU, not 0 registers")
        others = (self.registers, self.tile, self.tile_from, self.steps, self.steps_from, self.shared)
        if self.grid is not None and (self.lanes != 1 or any(others)):
            raise ValueError("no other numbers beside a grid but 1 lane and 0 registers")
        return self

    @model_validator(mode="after")
    def _whole_vectors(self) -> Numbers:
        for name in ("tile", "steps"):
            if getattr(self, name) % self.lanes:
                raise ValueError(
                    f"{name} that is a multiple of lanes, {self.lanes}, not {getattr(self, name)}"
                )
        return self


class Choice(Strict):
    """A layer's schedule: a way for each product, and the numbers of its kernel."""

    ways: dict[str, Way]
    numbers: Numbers

    @property
    def gpu(self) -> bool:
        """Whether it is that of a CUDA kernel."""
        return self.numbers.grid is not None

    @model_validator(mode="after")
    def _of_one_kind(self) -> Choice:
        if not self.gpu:
            return self
        for name, way in self.ways.items():
            if way.format not in (None, DENSE, *_GPU_FORMATS) or way.params or way.dot or way.stripes != 1:
                raise ValueError(
                    f"for a grid of blocks {', '.join(_GPU_FORMATS)} or {DENSE}, as packed for its parts, for {name}, "
                    f"not {way.format!r} with {way.params or way.dot or f'{way.stripes} stripes'}"
                )
            if way.format == _TENSOR and way.values not in _NARROW:
                raise ValueError(
                    f"values of {_TENSOR} in {' or '.join(_NARROW)}, not {way.values}, for {name}"
                )
        return self


class Timed(Strict):
    """What was measured of a schedule.

    us            microseconds a call, by time steps T; heuristic_us: of what the cost model chooses, in the same measurement;
    trials        how many candidates were measured; created: when; versions: package -> version.
    """

    us: dict[int, Microseconds] = Field(min_length=1)
    heuristic_us: dict[int, Microseconds]
    trials: Count
    created: str
    versions: dict[str, str] = {}

    @property
    def score(self) -> float:
        """What is to be small: the geometric mean of the times."""
        return geometric_mean(self.us)

    @property
    def gain(self) -> float:
        """How many times as long the cost model's choice takes."""
        return geometric_mean(self.heuristic_us) / self.score

    @model_validator(mode="after")
    def _both(self) -> Timed:
        if set(self.us) != set(self.heuristic_us):
            raise ValueError(
                f"times of the heuristic at T = {sorted(self.us)}, not {sorted(self.heuristic_us)}"
            )
        return self


class Record(Timed):
    """The fastest schedule measured for a layer."""

    key: Key
    choice: Choice

    @model_validator(mode="after")
    def _agree(self) -> Record:
        if set(self.choice.ways) != set(self.key.weights):
            raise ValueError(f"ways for {sorted(self.key.weights)}, not {sorted(self.choice.ways)}")
        for name, way in self.choice.ways.items():
            weight = self.key.weights[name]
            if (way.format is None) and weight.nnz:
                raise ValueError(f"a format for the {weight.nnz} nonzeros of {name}")
            if way.format not in (None, DENSE) and not weight.nnz:
                raise ValueError(f"no format for the empty S of {name}, not {way.format!r}")
            narrow = {"fp32"} if self.key.precision == "exact" else {"fp32", self.key.precision}
            if self.choice.gpu and way.values not in narrow:
                raise ValueError(f"values of {name} in {' or '.join(sorted(narrow))}, not {way.values}")
        return self


class RecordFile(Strict):
    """<device>/<operation>.json: all records of one operation on one machine."""

    format_version: Literal[2] = FORMAT_VERSION
    device: Device
    operation: Operation
    records: tuple[Record, ...]

    @model_validator(mode="after")
    def _of_the_operation(self) -> RecordFile:
        wanted = set(PRODUCTS[self.operation])
        for record in self.records:
            if set(record.key.weights) != wanted:
                raise ValueError(
                    f"weights {sorted(wanted)} of {self.operation}, not {sorted(record.key.weights)}"
                )
        if len({record.choice.gpu for record in self.records}) > 1:
            raise ValueError("numbers of CPUs or grids of a GPU, not both")
        if len({record.key.model_dump_json() for record in self.records}) != len(self.records):
            raise ValueError("one record a key")
        return self


def batch_class(batch: int) -> int:
    """The class of a number of streams: the power of two that it fits in, 64 at most."""
    return min(_LARGEST_BATCH, 1 << (batch - 1).bit_length())


def geometric_mean(us: dict[int, float]) -> float:
    """Of the times at each T: no T outweighs another."""
    return math.exp(sum(math.log(value) for value in us.values()) / len(us))
