"""Plans: the decisions of a schedule, as plain data that a kernel is emitted from.

A plan is made by `schedules`, travels through the passes as JSON on the operator it belongs to, and ends in the bundle's manifest.
It knows no TVM: what it says can be read, stored, compared and forced by a user.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

Order = Literal["left", "right"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The numbers of a kernel, each with what limits it.

    lanes       fp32 values in one vector register of the target.
    registers   vector registers a register tile may take: the architecture's (32 with AVX-512, else 16).
    tile        streams of a batch run together, one a lane (a multiple of `lanes`); 0 runs them one by one, which is
                the only way for formats whose index serves one stream (perm32, sell16).
    tile_from   a remainder of at least so many streams is worth a padded tile: below, a tile's cost exceeds theirs.
    """

    lanes: int
    registers: int
    tile: int = 0
    tile_from: int = 0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One structured matrix and the slice of the concatenated input that it multiplies.

    kind    the family's name; shape: (m, n) of the dense matrix; offset: its first column in the concatenated input.
    dims    the family's own sizes: (m1, n1, m2, n2) of a Kronecker product, (r,) of a low rank, (k, r) of a hybrid.
    order   of a Kronecker product: "left" forms B X first, "right" X C^T.
    """

    kind: Literal["kronecker", "low_rank", "hybrid", "dense", "zero"]
    shape: tuple[int, int]
    offset: int = 0
    dims: tuple[int, ...] = ()
    order: Order = "left"


@dataclass(frozen=True, kw_only=True)
class Product:
    """y = sum of parts z + S z, over one concatenated input z of `columns` values (gaps between parts are never read).

    sparse  the format of S and its packing parameters; None where S is empty.
    """

    rows: int
    columns: int
    parts: tuple[Part, ...]
    sparse: str | None = None
    nnz: int = 0
    params: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LstmPlan:
    """One LSTM layer in one direction: z = [x; h], the product of 4H rows, the gates i, f, g, o."""

    inputs: int
    hidden: int
    reverse: bool
    product: Product
    config: Config
    reason: str = ""
    rejected: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The plan as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The plan that `to_json` wrote."""
        raw = json.loads(text)
        return cls(**{**raw, **_decode(raw), "rejected": tuple(raw["rejected"])})


@dataclass(frozen=True, kw_only=True)
class LinearPlan:
    """One linear layer y = x W^T + b over M independent rows of x."""

    inputs: int
    outputs: int
    product: Product
    config: Config
    reason: str = ""
    rejected: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The plan as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The plan that `to_json` wrote."""
        raw = json.loads(text)
        return cls(**{**raw, **_decode(raw), "rejected": tuple(raw["rejected"])})


def _decode(raw: dict[str, Any]) -> dict[str, Any]:
    parts = tuple(Part(**{**p, "shape": tuple(p["shape"]), "dims": tuple(p["dims"])}) for p in raw["product"]["parts"])
    return {"product": Product(**{**raw["product"], "parts": parts}), "config": Config(**raw["config"])}
