"""How a table is looked up: one way for every target, since a look-up reads whole rows and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm_doping.kernels import packed_rows, product
from tvm_doping.kernels.plan import Config, EmbeddingPlan, LinearPlan, Product
from tvm_doping.targets import Target

_REGISTERS = 16  # of AVX2, the fewest: what a row needs is far less


def choose_embedding(
    w: Any, *, target: Target, tokens: str = "int64", tied: tuple[str, LinearPlan] | None = None
) -> EmbeddingPlan:
    """The plan of a look-up in the structure w (V, D); tokens: the integer type of the row numbers.

    tied: the name and the plan of a linear layer with the same weight, whose arrays then are the table too, where rows can be read
    from them. Otherwise S is stored by rows without padding, whatever force={"format": ...} names.
    """
    name, why = "", ""
    if tied is not None:
        name, linear = tied
        why = _apart(linear)
        if not why:
            return EmbeddingPlan(
                tokens=tokens,
                product=replace(linear.product, alternatives=()),
                config=linear.config,
                reason=f"tied: each row is read from the arrays of {name}",
                tied=name,
                packed=True,
            )
        why = f"tied to {name}, with a copy of its own: {why}; "
    part = product.part_of(w)
    nnz = int(w.S.nnz) if w.kind == "doped" else 0
    # a table of zeros alone keeps its empty rows of S: every kernel has at least one array
    stored = nnz > 0 or part.kind == "zero"
    how = "each row is copied" if part.kind == "dense" else "each row is built when it is looked up"
    return EmbeddingPlan(
        tokens=tokens,
        product=Product(
            part=part,
            sparse="csr" if stored else None,
            nnz=nnz,
            params={"multiple": 1} if stored else {},
        ),
        config=Config(lanes=target.lanes, registers=_REGISTERS),
        reason=why + how + ("; csr has its entries of S in one piece" if nnz else ""),
        tied=name,
    )


def _apart(linear: LinearPlan) -> str:
    """Why rows are not read from the arrays of a linear layer; "" where they are."""
    sparse = linear.product.sparse
    if sparse is not None and sparse not in packed_rows.READABLE:
        return f"rows cannot be read from {sparse}"
    return ""
