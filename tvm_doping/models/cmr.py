"""CMR, co-matrix dropout: keeps the two parts of a doped weight from leaning on each other (co-matrix
adaptation)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from tvm_doping.errors import InvalidInput
from tvm_doping.models.doping import doped_weights, original


def set_cmr(model: nn.Module, structured: float, sparse: float | None = None) -> None:
    """Set the rates at which output rows of the structured and of the sparse part are dropped, in every doped
    weight.

    In training, W = b1 * structured + b2 * (S * mask) with b1, b2 (m, 1) independent Bernoulli masks scaled
    by 1/(1 - rate), drawn anew each time the weight is computed; in evaluation nothing is dropped. `sparse`
    None means the same rate. Source: Thakker et al. 2021, section 3.2. Raises InvalidInput unless the rates
    lie in [0, 1).
    """
    sparse = structured if sparse is None else sparse
    for rate in (structured, sparse):
        if not 0 <= rate < 1:
            raise InvalidInput(
                "CMR rate", "a probability in [0, 1)", f"{rate}", "For example 0.1; 0 switches it off."
            )
    for _, _, _, weight in doped_weights(model):
        weight.cmr_structured, weight.cmr_sparse = structured, sparse


@torch.no_grad()
def cancellation(model: nn.Module) -> float:
    """How much of the two parts' energy cancels, over all doped weights: a measure of co-matrix adaptation.

        1 - ||K + S||^2 / (||K||^2 + ||S||^2) = -2 <K, S> / (||K||^2 + ||S||^2)      K: structured part, S: masked

    0 where the parts do not lean on each other, 1 where each undoes the other; below 0 where they repeat each other. 0 for
    a model without doped weights, and for pruned ones, which have no K.
    """
    product = energy = 0.0
    for _, module, name, weight in doped_weights(model):
        S = original(module, name) * weight.mask
        energy += float(S.square().sum())
        if weight.factor_names:
            K = weight.structured()
            product += float((K * S).sum())
            energy += float(K.square().sum())
    return -2 * product / energy if energy else 0.0


@dataclass(frozen=True, kw_only=True)
class CmrSchedule:
    """A rate from step `start` up to step `end`, 0 outside; with `fade` it falls linearly to 0 in between."""

    structured: float
    sparse: float
    start: float = 0.0
    end: float = math.inf
    fade: bool = False

    def rates(self, step: int) -> tuple[float, float]:
        """(structured, sparse) at a step."""
        if not self.start <= step < self.end:
            return 0.0, 0.0
        share = (
            1 - (step - self.start) / (self.end - self.start) if self.fade and self.end < math.inf else 1.0
        )
        return self.structured * share, self.sparse * share

    def apply(self, model: nn.Module, step: int) -> None:
        """Set the rates of a step."""
        set_cmr(model, *self.rates(step))
