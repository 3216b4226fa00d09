"""The TVM names that move between releases, and every TVM quirk worked around, in one place."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

__all__ = ["IRBuilder", "T", "tirx", "tvm"]
