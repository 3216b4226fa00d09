"""Relax to Relax, one pass a file; `pipeline` is the list of them."""

from __future__ import annotations

from tvm_doping.passes import reference  # registers the NumPy implementations of doping.*
from tvm_doping.passes.context import Context, Pass
from tvm_doping.passes.fuse import REPORT
from tvm_doping.passes.pack import Pack
from tvm_doping.passes.pipeline import pipeline, run_passes
from tvm_doping.passes.recall import RECALLED

__all__ = ["RECALLED", "REPORT", "Context", "Pack", "Pass", "pipeline", "reference", "run_passes"]
