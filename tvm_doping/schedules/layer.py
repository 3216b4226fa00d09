"""What a schedule is asked about, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from scipy import sparse as sp

from tvm_doping.kernels.plan import Alternative, Config, Part
from tvm_doping.sparsity.dots import DotName
from tvm_doping.sparsity.formats.perm import count_slots
from tvm_doping.sparsity.formats.perm2x32 import Perm2x32
from tvm_doping.sparsity.formats.perm8 import Perm8
from tvm_doping.sparsity.formats.perm64 import Perm64
from tvm_doping.sparsity.values import Precision, ValueType

# The format, among candidates, of the whole weight as a dense matrix.
DENSE = "dense"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One product to schedule: the structured part and S (m, n) of a weight.

    batch      the number of streams to be fast for; every number of streams works.
    steps      of each, that many steps are known at once: they run as tiles, like streams.
    again      it runs once a step of a sequence, and no other weight in between: the caches are its own.
    precision  how low stored values may go: a schedule may keep them in fp32 where narrow ones would be slower.
    """

    part: Part
    sparse: sp.csr_array
    batch: int = 1
    steps: int = 1
    again: bool = False
    precision: Precision = "exact"

    @property
    def rows(self) -> int:
        return self.part.shape[0]

    @property
    def columns(self) -> int:
        return self.part.shape[1]

    @cached_property
    def slots(self) -> tuple[int, int]:
        """Slots that perm32 makes of S: rows in natural order, and alike ones grouped. perm32_expand asks too."""
        return count_slots(self.sparse, 0), count_slots(self.sparse, 1)

    @cached_property
    def slots2x32(self) -> tuple[int, int]:
        """The same of perm2x32."""
        return count_slots(self.sparse, 0, Perm2x32.reach), count_slots(self.sparse, 1, Perm2x32.reach)

    @cached_property
    def slots8(self) -> tuple[int, int]:
        """The same of perm8."""
        return count_slots(self.sparse, 0, Perm8.reach), count_slots(self.sparse, 1, Perm8.reach)

    @cached_property
    def slots64(self) -> tuple[int, int]:
        """The same of perm64."""
        return count_slots(self.sparse, 0, Perm64.reach), count_slots(self.sparse, 1, Perm64.reach)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to run a product.

    values  how the values of S and of dense matrices are stored; dot: the instruction that multiplies those (plan.Product).
    format  of S; None where S is empty; DENSE: the structured part and S multiplied out.
    cycles  what the product is predicted to take for one stream; tile_cycles: for Config.tile. bytes: of weights.
    alternatives  all that was weighed, this one too.
    """

    format: str | None
    params: dict[str, int] = field(default_factory=dict)
    config: Config
    cycles: float
    tile_cycles: float
    bytes: float
    reason: str
    values: ValueType = "fp32"
    dot: DotName = ""
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Declined:
    """A schedule's refusal, with the reason."""

    reason: str
