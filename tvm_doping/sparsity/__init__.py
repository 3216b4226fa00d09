"""Where S may be nonzero (patterns, a training-time constraint) and how it is stored (formats)."""

from __future__ import annotations

from tvm_doping.sparsity.formats import FORMATS, Format, Packed, matvec, pack, unpack
from tvm_doping.sparsity.patterns import PATTERNS

__all__ = ["FORMATS", "PATTERNS", "Format", "Packed", "matvec", "pack", "unpack"]
