"""What is computed, as TensorIR: a module for each operation (`lstm`, `linear`, `embedding`), of structures and formats."""

from __future__ import annotations

from tvm_doping.kernels import embedding, linear, lstm
from tvm_doping.kernels.plan import Config, EmbeddingPlan, LinearPlan, LstmPlan, Part, Product

__all__ = [
    "Config",
    "EmbeddingPlan",
    "LinearPlan",
    "LstmPlan",
    "Part",
    "Product",
    "embedding",
    "linear",
    "lstm",
]
