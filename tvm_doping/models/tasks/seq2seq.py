"""Encoder and decoder with additive attention: GNMT (Wu et al. 2016, arXiv 1609.08144) in small."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tvm_doping.errors import InvalidInput

State = tuple[Tensor, Tensor]


class Translator(nn.Module):
    """logits = decoder(previous target tokens, *encoder(source tokens)), time first.

    source_vocab, target_vocab, embedding, hidden: sizes V, V', E, H; layers: LSTM layers of the encoder, and of the decoder;
    dropout: between all of these (training only); tied: the output layer uses the decoder's embedding (needs E = H); smoothing:
    of the labels, in training; beam, penalty: how translations are searched for (see `beam.beam_search`).

    All sentences of a batch have the same source length S: nothing is padded on that side, so that neither the backward LSTM
    nor the attention needs a mask, and a sentence's translation does not depend on its neighbours.
    """

    def __init__(
        self,
        source_vocab: int,
        target_vocab: int,
        embedding: int,
        hidden: int,
        layers: int = 2,
        dropout: float = 0.0,
        tied: bool = False,
        smoothing: float = 0.0,
        beam: int = 5,
        penalty: float = 0.6,
    ) -> None:
        super().__init__()
        self.smoothing, self.beam, self.penalty = smoothing, beam, penalty
        sizes = (source_vocab, target_vocab, embedding, hidden, layers)
        if min(sizes) < 1 or hidden % 2 or not 0 <= dropout < 1:
            raise InvalidInput(
                "Translator",
                "sizes of at least 1, an even hidden and a dropout in [0, 1)",
                f"vocabularies of {source_vocab} and {target_vocab}, embedding={embedding}, hidden={hidden}, "
                f"layers={layers}, dropout={dropout}",
                "Correct the model's settings.",
            )
        if tied and embedding != hidden:
            raise InvalidInput(
                "tied", "embedding = hidden", f"{embedding} and {hidden}", "Make them equal, or untie."
            )
        self.encoder = Encoder(source_vocab, embedding, hidden, layers, dropout)
        self.decoder = Decoder(target_vocab, embedding, hidden, layers, dropout, tied)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """source (S, N) and target (T, N) int64 -> logits (T, N, V') of the token after each of target's."""
        logits: Tensor = self.decoder(target, *self.encoder(source))[0]
        return logits


class Encoder(nn.Module):
    """A bidirectional LSTM (H/2 units in each direction), then residual ones: x + LSTM(x)."""

    def __init__(self, vocab: int, embedding: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(vocab, embedding), nn.Dropout(dropout)
        self.lstm = nn.LSTM(embedding, hidden // 2, bidirectional=True)
        self.lstms = nn.ModuleList(nn.LSTM(hidden, hidden) for _ in range(layers - 1))
        self.key = nn.Linear(hidden, hidden, bias=False)

    def forward(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """source (S, N) int64 -> memory (S, N, H), and what the attention compares queries with, keys (S, N, H)."""
        x, _ = self.lstm(self.dropout(self.embedding(source)))
        for lstm in self.lstms:
            x = x + lstm(self.dropout(x))[0]
        return x, self.key(x)

    def example_inputs(self) -> tuple[Any, ...]:
        """Inputs to compile it with."""
        return (_tokens(self.embedding, 7, 3),)


class Decoder(nn.Module):
    """The bottom LSTM asks the attention; its context goes into all LSTMs above, which are residual.

    score_ts = v . tanh(q_t + k_s), q = W h (Bahdanau et al. 2015, arXiv 1409.0473); context_t = sum_s softmax_s(score_ts) memory_s.
    The query is the bottom layer's output of the same step (Wu et al. take that of the step before): no layer then waits for
    the context of the step before, and in training each runs over all time steps at once.
    """

    def __init__(
        self, vocab: int, embedding: int, hidden: int, layers: int, dropout: float, tied: bool
    ) -> None:
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(vocab, embedding), nn.Dropout(dropout)
        self.lstm = nn.LSTM(embedding, hidden)
        self.lstms = nn.ModuleList(nn.LSTM(2 * hidden, hidden) for _ in range(layers - 1))
        self.query, self.score = nn.Linear(hidden, hidden), nn.Linear(hidden, 1, bias=False)
        self.context = nn.Linear(2 * hidden, hidden)
        self.output = nn.Linear(hidden, vocab)
        if tied:
            self.output.weight = self.embedding.weight

    def forward(
        self, target: Tensor, memory: Tensor, keys: Tensor, state: State | None = None
    ) -> tuple[Tensor, State]:
        """target (T, N) int64, memory and keys (S, N, H), state (h, c) each (L, N, H) or None for zeros -> logits
        (T, N, V'), new state.
        """
        given = None if state is None else (state[0][:1], state[1][:1])
        x, new = self.lstm(self.dropout(self.embedding(target)), given)
        states = [new]
        context = self._attend(x, memory, keys)
        for layer, lstm in enumerate(self.lstms, 1):
            given = None if state is None else (state[0][layer : layer + 1], state[1][layer : layer + 1])
            y, new = lstm(self.dropout(torch.cat([x, context], -1)), given)
            x = x + y
            states.append(new)
        x = torch.tanh(self.context(self.dropout(torch.cat([x, context], -1))))
        logits = self.output(self.dropout(x))
        return logits, (torch.cat([h for h, _ in states]), torch.cat([c for _, c in states]))

    def example_inputs(self) -> tuple[Any, ...]:
        """Inputs to compile it with."""
        random = torch.Generator().manual_seed(1)
        hidden = self.lstm.hidden_size
        memory, keys = (torch.randn((5, 3, hidden), generator=random) for _ in range(2))
        state = torch.randn((2, 1 + len(self.lstms), 3, hidden), generator=random) * 0.5
        return _tokens(self.embedding, 7, 3), memory, keys, (state[0], state[1])

    def example_axes(self) -> list[set[int]]:
        """The axes of each of them that vary: S, of the memory, is read by no LSTM."""
        return [{0, 1}, {0, 1}, {0, 1}, {1}, {1}]

    def _attend(self, x: Tensor, memory: Tensor, keys: Tensor) -> Tensor:
        """x (T, N, H) -> context (T, N, H)."""
        energy = torch.tanh(keys + self.query(x).unsqueeze(1))  # (T, S, N, H)
        weights = torch.softmax(self.score(energy), 1)  # (T, S, N, 1)
        # as a product of matrices for each sentence: a sum over (T, S, N, H) would be held for the backward pass
        return (weights.squeeze(3).permute(2, 0, 1) @ memory.transpose(0, 1)).transpose(0, 1)


def _tokens(embedding: nn.Embedding, steps: int, batch: int) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(embedding.num_embeddings, (steps, batch), generator=random)
