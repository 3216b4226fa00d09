"""Models whose weights have every structure there is, as PyTorch expressions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tvm_doping.models import dope


class Tagger(nn.Module):
    """Tokens in, scores out: an embedding, an LSTM that starts from zero, a linear layer."""

    def __init__(self, hidden: int = 16, classes: int = 12, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, hidden)
        self.rnn = nn.LSTM(hidden, hidden, **options)
        self.output = nn.Linear(hidden * (2 if options.get("bidirectional") else 1), classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        y, _ = self.rnn(self.embedding(tokens))
        return torch.relu(self.output(y))


def doped(structure: Any = "kronecker", seed: int = 0, **options: Any) -> Tagger:
    """A Tagger whose LSTM and linear weights are doped; S has random values where its masks are open."""
    torch.manual_seed(seed)
    model = Tagger(**options)
    dope(model, structure=structure, compression=4)
    return model.eval()


def plain(seed: int = 0, **options: Any) -> Tagger:
    """A Tagger that is not doped."""
    torch.manual_seed(seed)
    return Tagger(**options).eval()
