"""Regularisation of LSTM language models after Merity et al. 2018 (AWD-LSTM, arXiv 1708.02182): training only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tvm_doping.models.tasks.protocol import Part


class AwdRecipe(Part):
    """Regularisation after AWD-LSTM."""

    weight_drop: float = Field(
        default=0.0, ge=0, lt=1, description="rate of dropped entries of each weight_hh, once a segment"
    )
    embedding_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="rate of words whose vector is dropped wherever they stand"
    )
    locked: bool = Field(default=True, description="model.dropout takes one mask for all time steps")
    alpha: float = Field(default=0.0, ge=0, description="penalty on the last layer's mean squared output")
    beta: float = Field(
        default=0.0, ge=0, description="penalty on the mean squared change of that output from step to step"
    )


@dataclass(frozen=True, kw_only=True)
class Awd:
    """The regularised way through a language model's embedding and LSTM; the fields are those of AwdRecipe.

    Called with the model, tokens (T, N) and the state, it returns the dropped-out output (T, N, H) of the last layer, new
    state, and leaves `alpha mean(dropped^2) + beta mean((y_t+1 - y_t)^2)` for `pop_penalty`. Weight drop is of the value
    of a weight, be it dense or doped.
    """

    weight_drop: float = 0.0
    embedding_dropout: float = 0.0
    locked: bool = True
    alpha: float = 0.0
    beta: float = 0.0

    def __call__(
        self, model: Any, tokens: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        lstm: nn.LSTM = model.lstm
        rate: float = model.dropout.p
        table = model.embedding.weight
        words = functional.dropout(table.new_ones(len(table), 1), self.embedding_dropout)
        x = self._drop(functional.embedding(tokens, table * words), rate)
        if state is None:
            zeros = x.new_zeros(lstm.num_layers, x.shape[1], lstm.hidden_size)
            state = (zeros, zeros)
        y, finals = x, []
        for layer, (weight_ih, weight_hh, *biases) in enumerate(lstm.all_weights):
            dropped = functional.dropout(weight_hh, self.weight_drop)
            first = [part[layer : layer + 1] for part in state]
            weights = [weight_ih, dropped, *biases]
            # one layer at a time: nn.LSTM has neither a mask for all steps between layers nor weights from outside
            y, h, c = torch.lstm(x, first, weights, lstm.bias, 1, 0.0, True, False, False)
            finals.append((h, c))
            x = self._drop(y, rate)
        if self.alpha or self.beta:
            penalty = self.alpha * x.pow(2).mean()
            if len(y) > 1:
                penalty = penalty + self.beta * (y[1:] - y[:-1]).pow(2).mean()
            model.penalty = penalty
        h, c = (torch.cat(parts) for parts in zip(*finals, strict=True))
        return x, (h, c)

    def _drop(self, x: Tensor, rate: float) -> Tensor:
        if not self.locked or not rate:
            return functional.dropout(x, rate)
        return x * functional.dropout(x.new_ones(1, *x.shape[1:]), rate)


def pop_penalty(model: nn.Module) -> Tensor | None:
    """What the last call in training adds to the loss for each token; None where nothing is to be added."""
    inner: Any = getattr(model, "module", model)  # accelerate wraps the model of several processes
    penalty: Tensor | None = inner.__dict__.pop("penalty", None)
    return penalty
