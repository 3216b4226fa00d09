"""What a structured matrix is: NumPy and SciPy only, and the oracle for everything compiled."""

from __future__ import annotations

from tvm_doping.structures.sparse import canonical

__all__ = ["canonical"]
