"""The names of precisions: what a manifest says of a model without a look at how its values are stored (sparsity/values.py)."""

from __future__ import annotations

from typing import Literal, get_args

# How low the stored values of a model may go; "exact" is fp32.
Precision = Literal["exact", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
