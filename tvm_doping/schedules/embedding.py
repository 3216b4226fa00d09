"""How a table is looked up: one way for every target, since a look-up reads whole rows and nothing else."""

from __future__ import annotations

from typing import Any

from tvm_doping.kernels import product
from tvm_doping.kernels.plan import Config, EmbeddingPlan, Product
from tvm_doping.targets import Target

_REGISTERS = 16  # of AVX2, the fewest: what a row needs is far less


def choose_embedding(w: Any, *, target: Target, tokens: str = "int64") -> EmbeddingPlan:
    """The plan of a look-up in the structure w (V, D); tokens: the integer type of the row numbers.

    S is stored by rows without padding: formats made for products, which force={"format": ...} names, have no rows to read.
    """
    part = product.part_of(w)
    nnz = int(w.S.nnz) if w.kind == "doped" else 0
    # a table of zeros alone keeps its empty rows of S: every kernel has at least one array
    stored = nnz > 0 or part.kind == "zero"
    return EmbeddingPlan(
        tokens=tokens,
        product=Product(
            part=part,
            sparse="csr" if stored else None,
            nnz=nnz,
            params={"multiple": 1} if stored else {},
        ),
        config=Config(lanes=target.lanes, registers=_REGISTERS),
        reason="each row is built when it is looked up"
        + ("; csr has its entries of S in one piece" if nnz else ""),
    )
