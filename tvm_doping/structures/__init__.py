"""What a structured matrix is: NumPy and SciPy only, and the oracle for everything compiled."""

from __future__ import annotations

from tvm_doping.structures.base import Compression, Structure, compression
from tvm_doping.structures.dense import Dense, Zero
from tvm_doping.structures.doped import Doped
from tvm_doping.structures.kronecker import Kronecker
from tvm_doping.structures.low_rank import Hybrid, LowRank
from tvm_doping.structures.recover import recover
from tvm_doping.structures.shapes import hybrid_shapes, kron_shapes, low_rank
from tvm_doping.structures.sparse import canonical
from tvm_doping.structures.spec import from_spec, to_spec
from tvm_doping.structures.words import describe

# One row makes a family known; a Doped has one of the others as its base.
FAMILIES: dict[str, type[Structure]] = {
    "dense": Dense,
    "zero": Zero,
    "kronecker": Kronecker,
    "low_rank": LowRank,
    "hybrid": Hybrid,
    "doped": Doped,
}

__all__ = [
    "FAMILIES",
    "Compression",
    "Dense",
    "Doped",
    "Hybrid",
    "Kronecker",
    "LowRank",
    "Structure",
    "Zero",
    "canonical",
    "compression",
    "describe",
    "from_spec",
    "hybrid_shapes",
    "kron_shapes",
    "low_rank",
    "recover",
    "to_spec",
]
