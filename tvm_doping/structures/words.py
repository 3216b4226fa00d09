"""A structure in words, for tables and reports."""

from __future__ import annotations

from tvm_doping.structures.base import Structure
from tvm_doping.structures.doped import Doped
from tvm_doping.structures.kronecker import Kronecker
from tvm_doping.structures.low_rank import Hybrid, LowRank


def describe(structure: Structure) -> str:
    """A structure in words: "kronecker 20x130 (x) 130x10 + S of 84,500"."""
    if isinstance(structure, Doped):
        return f"{describe(structure.base)} + S of {structure.S.nnz:,}"
    if isinstance(structure, Kronecker):
        left, right = structure.B.shape, structure.C.shape
        return f"kronecker {left[0]}x{left[1]} (x) {right[0]}x{right[1]}"
    if isinstance(structure, LowRank):
        return f"low rank {structure.U.shape[1]}"
    if isinstance(structure, Hybrid):
        return f"hybrid: {structure.D.shape[0]} dense rows, rank {structure.U.shape[1]} below"
    return structure.kind
