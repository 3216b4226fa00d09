"""Doped models in PyTorch: dope any `nn.LSTM` or `nn.Linear`, anneal, regularise, train, compress what was trained dense, and
read run folders back."""

from __future__ import annotations

from tvm_doping.models.anneal import Annealing
from tvm_doping.models.cmr import CmrSchedule, cancellation, set_cmr
from tvm_doping.models.compressing import Compressed, compress
from tvm_doping.models.doping import close_masks, dope, doped_weights, extract, put, undope
from tvm_doping.models.finetuning import Finetuning
from tvm_doping.models.loading import load_model, model_tensors
from tvm_doping.models.metrics import read_metrics
from tvm_doping.models.recipe import Recipe, load_recipe
from tvm_doping.models.recipe import names as recipe_names
from tvm_doping.models.rivals import smaller_hidden
from tvm_doping.models.tasks.language_model import LanguageModel

__all__ = [
    "Annealing",
    "CmrSchedule",
    "Compressed",
    "Finetuning",
    "LanguageModel",
    "Recipe",
    "cancellation",
    "close_masks",
    "compress",
    "dope",
    "doped_weights",
    "extract",
    "load_model",
    "load_recipe",
    "model_tensors",
    "put",
    "read_metrics",
    "recipe_names",
    "set_cmr",
    "smaller_hidden",
    "undope",
]
