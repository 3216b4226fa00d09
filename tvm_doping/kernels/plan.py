"""Plans: the decisions of a schedule, as plain data that a kernel is emitted from.

A plan is made by `schedules`, travels through the passes as JSON on the operator it belongs to, and ends in the bundle's manifest.
It knows no TVM: what it says can be read, stored, compared and forced by a user.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Self

from tvm_doping.sparsity.dots import DotName
from tvm_doping.sparsity.values import ValueType

Order = Literal["left", "right"]
Gather = Literal["", "lanes", "sve"]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The numbers of a CUDA kernel.

    parts      blocks that a layer's units are divided among: at most as many as run at once, or their barrier would never open.
    threads    of a block, a multiple of 32: enough warps to hide the latency of shared memory, few enough for their registers.
    tile_from  streams from which 32 run side by side, a lane each: below, they run one by one.
    shared     bytes of shared memory that a block may take: the architecture's, for one block a multiprocessor.
    registers  that a thread may use: 65,536 of a multiprocessor among the block's threads.
    """

    parts: int
    threads: int
    tile_from: int
    shared: int
    registers: int


@dataclass(frozen=True, kw_only=True)
class Config:
    """The numbers of a kernel, each with what limits it.

    lanes       fp32 values in one vector register of the target.
    registers   vector registers a register tile may take: the architecture's (32 with AVX-512, else 16).
    tile        streams of a batch run together, one a lane (a multiple of `lanes`); 0 runs them one by one.
    tile_from   a remainder of at least so many streams is worth a padded tile: below, a tile's cost exceeds theirs.
    steps       time steps of one stream whose input projection W_ih x runs as a tile, ahead of the recurrence (a multiple of
                `lanes`; 0: each step projects its own input); bounds the memory, whatever T is.
    steps_from  a remainder of at least so many steps is worth a padded tile.
    portable    emulate the AVX-512 instructions of the look-up formats: slow, for tests on CPUs without them.
    gather      how values of z come into one vector, for one stream: "" as the format has it, "lanes" by single loads into its
                lanes (in csr too, four nonzeros of a row side by side), "sve" by SVE's instruction.
    shared      whether the threads of a session share the work of a step: it must outweigh the barriers (schedules.threads).
    grid        the numbers of a CUDA kernel, which has no others; None for CPUs.
    """

    lanes: int
    registers: int
    tile: int = 0
    tile_from: int = 0
    steps: int = 0
    steps_from: int = 0
    portable: bool = False
    gather: Gather = ""
    shared: bool = False
    grid: Grid | None = None

    @property
    def full(self) -> int:
        """fp32 values of the target's widest register, of which `lanes` is half where a batch fills no more (AVX-512)."""
        return 16 if (self.lanes, self.registers) == (8, 32) else self.lanes


@dataclass(frozen=True, kw_only=True)
class Part:
    """The structured part of a matrix.

    kind    the family's name; shape: (m, n) of the dense matrix.
    dims    the family's own sizes: (m1, n1, m2, n2) of a Kronecker product, (r,) of a low rank, (k, r) of a hybrid.
    order   of a Kronecker product: "left" forms B X first, "right" X C^T.
    """

    kind: Literal["kronecker", "low_rank", "hybrid", "dense", "zero"]
    shape: tuple[int, int]
    dims: tuple[int, ...] = ()
    order: Order = "left"


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A way to run a product that was weighed when its plan was made; the one chosen is among them.

    lanes, tile  as in Config; dot: as in Product; bytes: of the stored weight.
    cycles  what a step of all streams was predicted to take, structured part included.
    """

    format: str | None
    values: ValueType
    lanes: int
    tile: int
    cycles: int
    bytes: int
    reason: str
    dot: DotName = ""


@dataclass(frozen=True, kw_only=True)
class Product:
    """y += (structured part) z + S z.

    part    that of the weight, or of kind "dense" and without S where the plan has the weight multiplied out.
    sparse  the format of S and its packing parameters; None where S is empty. nnz: the nonzeros of S.
    stripes ranges of S's columns that are stored, and multiplied, one after the other: the part of z that one needs stays in the
            fastest cache where a tile of all of it would not.
    values  how the values of S and of dense matrices (W, U, V, D) are stored; the factors of a Kronecker product stay fp32.
    dot     the instruction (sparsity.dots) that multiplies dense matrices, and S in a format that it serves, with inputs rounded
            to the type of the values; "": values are widened to fp32, and inputs stay as they are.
    alternatives  what else could have run, fastest first; nothing that the kernel depends on.
    """

    part: Part
    sparse: str | None = None
    nnz: int = 0
    params: dict[str, int] = field(default_factory=dict)
    stripes: int = 1
    values: ValueType = "fp32"
    dot: DotName = ""
    alternatives: tuple[Alternative, ...] = ()

    @property
    def rows(self) -> int:
        return self.part.shape[0]

    @property
    def columns(self) -> int:
        return self.part.shape[1]

    @property
    def format(self) -> str:
        """As reports name it: the format of S; "dense" for a dense matrix alone, "none" for another structure alone."""
        return self.sparse or ("dense" if self.part.kind == "dense" else "none")


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What every plan has; `products` names the fields that are products.

    record  the tuning record that it was made from, in words; "" where the schedules predicted it.
    """

    config: Config
    reason: str = ""
    rejected: tuple[str, ...] = ()
    record: str = ""

    products: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> str:
        """The plan as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The plan that `to_json` wrote."""
        return cls(**_decode(json.loads(text), cls.products))


@dataclass(frozen=True, kw_only=True)
class LstmPlan(_Plan):
    """One LSTM layer in one direction: the products of W_ih (4H, I) and W_hh (4H, H), each in a format of its own."""

    inputs: int
    hidden: int
    reverse: bool
    input: Product
    recurrent: Product

    products: ClassVar[tuple[str, ...]] = ("input", "recurrent")


@dataclass(frozen=True, kw_only=True)
class LinearPlan(_Plan):
    """One linear layer y = x W^T + b over M independent rows of x; head: what is wanted of y (`Head`), "" for y itself."""

    inputs: int
    outputs: int
    product: Product
    head: str = ""

    products: ClassVar[tuple[str, ...]] = ("product",)


@dataclass(frozen=True, kw_only=True)
class EmbeddingPlan(_Plan):
    """Rows of a table (V, D) by number; tokens: the integer type of the numbers.

    tied    the name of the linear layer whose weight the table is, "" for none.
    packed  whether rows are read from that layer's arrays; product and config are then those that it is packed by. Else the table
            has arrays of its own.
    """

    tokens: str
    product: Product
    tied: str = ""
    packed: bool = False

    products: ClassVar[tuple[str, ...]] = ("product",)


def _decode(raw: dict[str, Any], products: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a plan with its dataclasses and tuples back in place of dicts and lists."""

    def product(fields: dict[str, Any]) -> Product:
        part = {
            **fields["part"],
            "shape": tuple(fields["part"]["shape"]),
            "dims": tuple(fields["part"]["dims"]),
        }
        alternatives = tuple(Alternative(**a) for a in fields["alternatives"])
        return Product(**{**fields, "part": Part(**part), "alternatives": alternatives})

    decoded = {name: product(raw[name]) for name in products}
    grid = raw["config"].get("grid")
    config = Config(**{**raw["config"], "grid": grid and Grid(**grid)})
    return {**raw, **decoded, "config": config, "rejected": tuple(raw["rejected"])}
