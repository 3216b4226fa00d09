"""Language modelling: predict the next token; after Zaremba et al. 2014 (arXiv 1409.2329)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from tvm_doping.errors import DataError, InvalidInput

State = tuple[Tensor, Tensor]


class LanguageModel(nn.Module):
    """logits = output(dropout(LSTM(dropout(embedding(tokens))))), time first.

    vocab, embedding, hidden, layers: sizes V, E, H, L; dropout: between all of these (training only);
    tied: the output layer uses the embedding's weights (needs E = H).
    """

    def __init__(
        self, vocab: int, embedding: int, hidden: int, layers: int, dropout: float = 0.0, tied: bool = False
    ) -> None:
        super().__init__()
        if min(vocab, embedding, hidden, layers) < 1 or not 0 <= dropout < 1:
            raise InvalidInput(
                "LanguageModel",
                "sizes of at least 1 and a dropout in [0, 1)",
                f"vocab={vocab}, embedding={embedding}, hidden={hidden}, layers={layers}, dropout={dropout}",
                "Correct the model's settings.",
            )
        if tied and embedding != hidden:
            raise InvalidInput(
                "tied", "embedding = hidden", f"{embedding} and {hidden}", "Make them equal, or untie."
            )
        self.embedding = nn.Embedding(vocab, embedding)
        self.dropout = nn.Dropout(dropout)
        # nn.LSTM warns about a dropout between layers that one layer does not have
        self.lstm = nn.LSTM(embedding, hidden, layers, dropout=dropout if layers > 1 else 0.0)
        self.output = nn.Linear(hidden, vocab)
        if tied:
            self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """tokens (T, N) int64, state (h, c) each (L, N, H) or None for zeros -> logits (T, N, V), new
        state."""
        x = self.dropout(self.embedding(tokens))
        with _full_precision(x) if self.training else nullcontext():
            y, new = self.lstm(x, state)
        return self.output(self.dropout(y)), new


def initialise(model: nn.Module, radius: float, seed: int) -> None:
    """Draw every parameter uniformly from [-radius, radius], the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.empty(parameter.shape).uniform_(-radius, radius, generator=generator))


def columns(stream: np.ndarray, batch: int, split: str) -> Tensor:
    """A stream cut into `batch` equal parts that run side by side: (length // batch, batch), the rest left
    out."""
    length = len(stream) // batch
    if length < 2:
        raise DataError(
            f"{split} split",
            f"at least {2 * batch} tokens for a batch of {batch}",
            f"{len(stream)}",
            "Add text.",
        )
    return torch.from_numpy(np.ascontiguousarray(stream[: length * batch].reshape(batch, length).T))


def segments(data: Tensor, steps: int, *, whole: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """(tokens, next tokens) of `steps` time steps each, in order; whole leaves a shorter last one out."""
    for begin in range(0, len(data) - 1, steps):
        size = min(steps, len(data) - 1 - begin)
        if size == steps or not whole:
            yield data[begin : begin + size], data[begin + 1 : begin + 1 + size]


def segment_loss(
    model: nn.Module, tokens: Tensor, targets: Tensor, state: State | None
) -> tuple[Tensor, State]:
    """(cross entropy, summed over time and averaged over the batch as Zaremba's learning rates ask; state)"""
    with parametrize.cached():  # each doped weight is computed once a segment
        logits, new = model(tokens, state)
    loss = (
        functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / tokens.shape[1]
    )
    return loss, new


@torch.no_grad()
def perplexity(model: nn.Module, data: Tensor, steps: int = 100, device: torch.device | None = None) -> float:
    """exp(mean cross entropy) over data (T, N) in float32 evaluation, the state carried from start to end."""
    was_training = model.training
    model.eval()
    total, state = 0.0, None
    with parametrize.cached():
        for tokens, targets in segments(data, steps, whole=False):
            logits, state = model(tokens.to(device), state)
            wanted = targets.to(device).flatten()
            total += float(functional.cross_entropy(logits.flatten(0, 1), wanted, reduction="sum"))
    model.train(was_training)
    mean = total / ((len(data) - 1) * data.shape[1])
    return math.exp(mean) if mean < 700 else math.inf


def _full_precision(x: Tensor) -> torch.autocast | nullcontext[None]:
    """No autocast around the LSTM on a CPU: its bfloat16 is slower there, and would round the state at every
    step."""
    cpu = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return torch.autocast("cpu", enabled=False) if cpu else nullcontext()
