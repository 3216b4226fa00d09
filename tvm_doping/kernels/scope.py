"""What the pieces of a product share while they are emitted: the vectors z and y, the packed arrays, the Config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tvm_doping._tvm import T
from tvm_doping.kernels.emit import Buffer, Expr, add, load
from tvm_doping.kernels.plan import Config


@dataclass(frozen=True, kw_only=True)
class Scope:
    """y += W z for one stream (width 1) or for a tile of `width` streams, one a lane: z[k * width + stream].

    z   the concatenated input, with at least `SLACK` floats behind its last column: vector loads may run over.
    scratch  of `product.scratch`: room for values between two products, common to the threads, contents undefined.
    dot the instruction for dense matrices (plan.Product), "" for fp32 arithmetic.
    y   the output, with at least `SLACK` rows behind its last one: padded rows add zeros there.
    """

    z: Buffer
    y: Buffer
    arrays: Mapping[str, Buffer]
    config: Config
    scratch: Buffer = None
    width: int = 1
    dot: str = ""

    @property
    def lanes(self) -> int:
        return self.config.lanes

    @property
    def shared(self) -> bool:
        """Whether threads share the loops over rows and groups (emit.split)."""
        return self.config.shared

    @property
    def vectors(self) -> int:
        """Vectors that hold one row of a tile."""
        return self.width // self.config.lanes

    def input(self, column: Expr, vector: Expr = 0) -> Expr:
        """Vector `vector` of z from `column` on: consecutive columns of one stream, or one column of consecutive streams."""
        return load(self.z, column * self.width + vector * self.lanes, self.lanes)

    def accumulate(self, row: Expr, value: Expr, vector: Expr = 0) -> None:
        """y[row ...] += value, laid out as `input` is."""
        add(self.y, row * self.width + vector * self.lanes, value, self.lanes)


# One full vector of the widest target, twice over: a row tail plus a whole padded stripe (32 columns).
SLACK = 64


def padded(count: int, width: int) -> Buffer:
    """A buffer for z or y of `width` streams, its slack included."""
    return T.alloc_buffer(((count + SLACK) * width,), "float32")
