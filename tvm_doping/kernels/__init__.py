"""What is computed, as TensorIR: one module for each operation (`lstm`, `linear`), composed of structures and formats."""

from __future__ import annotations

from tvm_doping.kernels import linear, lstm
from tvm_doping.kernels.plan import Config, LinearPlan, LstmPlan, Part, Product

__all__ = ["Config", "LinearPlan", "LstmPlan", "Part", "Product", "linear", "lstm"]
