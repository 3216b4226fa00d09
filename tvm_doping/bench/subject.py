"""What is timed: a model's LSTM layers, embedding and decoder, as the dense arrays every baseline gets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from tvm_doping.errors import BenchError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class DenseLayer:
    """One LSTM layer, gates i, f, g, o as PyTorch orders them.

    w_ih (4H, I), w_hh (4H, H), b_ih (4H,), b_hh (4H,), all float32.
    """

    w_ih: np.ndarray
    w_hh: np.ndarray
    b_ih: np.ndarray
    b_hh: np.ndarray

    @property
    def inputs(self) -> int:
        """I."""
        return int(self.w_ih.shape[1])

    @property
    def hidden(self) -> int:
        """H."""
        return int(self.w_hh.shape[1])


@dataclass(frozen=True, kw_only=True)
class Subject:
    """LSTM layers in a row; maybe an embedding (V, I) before, a decoder (weight (O, H), bias (O,)) after.

    Input: x (T, N, I) float32, or tokens (T, N) int64 with an embedding. Output: (T, N, H) or (T, N, O).
    """

    layers: tuple[DenseLayer, ...]
    embedding: np.ndarray | None = field(default=None, repr=False)
    decoder: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)

    def lstm_only(self) -> Subject:
        """The LSTM layers alone."""
        return replace(self, embedding=None, decoder=None)

    @property
    def lstm_weights(self) -> int:
        """The number of dense weights of the LSTM layers, biases aside."""
        return sum(layer.w_ih.size + layer.w_hh.size for layer in self.layers)

    def inputs(self, steps: int, batch: int, count: int, seed: int) -> list[np.ndarray]:
        """`count` inputs for calls of T = steps and N = batch; the same seed gives the same inputs."""
        rng = np.random.default_rng(seed)
        if self.embedding is not None:
            return [rng.integers(0, len(self.embedding), (steps, batch)) for _ in range(count)]
        shape = (steps, batch, self.layers[0].inputs)
        return [rng.uniform(-1, 1, shape).astype("float32") for _ in range(count)]

    def module(self) -> torch.nn.Module:
        """The dense PyTorch model with these weights: forward(x, state | None) -> (y, state)."""
        return _build(self)


def subject_of(model: torch.nn.Module) -> tuple[Subject, torch.nn.LSTM]:
    """The dense weights of a (doped) model as they are in evaluation, and its nn.LSTM.

    The model is an nn.LSTM, or holds one, at most one nn.Embedding before and at most one nn.Linear after it.
    Raises BenchError for other models.
    """
    import torch

    lstms = [module for module in model.modules() if isinstance(module, torch.nn.LSTM)]
    embeddings = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    if len(lstms) != 1 or len(embeddings) > 1 or len(linears) > 1:
        raise _unfit(model, f"{len(lstms)} nn.LSTM, {len(embeddings)} nn.Embedding, {len(linears)} nn.Linear")
    lstm = lstms[0]
    if lstm.bidirectional or lstm.batch_first or lstm.proj_size:
        raise _unfit(model, "an nn.LSTM with bidirectional, batch_first or proj_size")
    with torch.no_grad():
        layers = tuple(_layer(lstm, index) for index in range(lstm.num_layers))
        embedding = _array(embeddings[0].weight) if embeddings else None
        decoder = None
        if linears:
            weight = _array(linears[0].weight)
            bias = linears[0].bias
            decoder = (weight, np.zeros(len(weight), "float32") if bias is None else _array(bias))
    return Subject(layers=layers, embedding=embedding, decoder=decoder), lstm


def outputs_alone(module: torch.nn.Module) -> torch.nn.Module:
    """forward(x) -> y of a module that returns (y, state): a session keeps the state, and is not asked for copies of it."""
    import torch

    class OutputsAlone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.lstm(x)[0]
            return y

    return OutputsAlone().eval()


def _unfit(model: torch.nn.Module, got: str) -> BenchError:
    return BenchError(
        type(model).__name__,
        "one unidirectional nn.LSTM, time first, at most one nn.Embedding before and one nn.Linear after",
        got,
        "Give the nn.LSTM itself; its layers are then timed alone.",
    )


def _layer(lstm: torch.nn.LSTM, index: int) -> DenseLayer:
    weights = {
        short: _array(getattr(lstm, f"{name}_l{index}"))
        for short, name in (("w_ih", "weight_ih"), ("w_hh", "weight_hh"))
    }
    biases = {
        short: _array(getattr(lstm, f"{name}_l{index}"))
        if lstm.bias
        else np.zeros(4 * lstm.hidden_size, "float32")
        for short, name in (("b_ih", "bias_ih"), ("b_hh", "bias_hh"))
    }
    return DenseLayer(**weights, **biases)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), "float32")


def _build(subject: Subject) -> torch.nn.Module:
    import torch

    def copy(target: torch.Tensor, array: np.ndarray) -> None:
        target.data = torch.from_numpy(np.array(array))

    class Dense(torch.nn.Module):
        """Embedding, LSTM and decoder, those that the subject has, in a row."""

        def __init__(self) -> None:
            super().__init__()
            first, count = subject.layers[0], len(subject.layers)
            self.embedding: torch.nn.Embedding | None = None
            self.decoder: torch.nn.Linear | None = None
            if subject.embedding is not None:
                self.embedding = torch.nn.Embedding.from_pretrained(
                    torch.from_numpy(np.array(subject.embedding))
                )
            self.lstm = torch.nn.LSTM(first.inputs, first.hidden, count)
            for index, layer in enumerate(subject.layers):
                for name in ("w_ih", "w_hh", "b_ih", "b_hh"):
                    kind = "weight" if name.startswith("w") else "bias"
                    copy(getattr(self.lstm, f"{kind}_{name[2:]}_l{index}"), getattr(layer, name))
            if subject.decoder is not None:
                weight, bias = subject.decoder
                self.decoder = torch.nn.Linear(weight.shape[1], weight.shape[0])
                copy(self.decoder.weight, weight)
                copy(self.decoder.bias, bias)

        def forward(
            self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None = None
        ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
            y = x if self.embedding is None else self.embedding(x)
            y, state = self.lstm(y, state)
            return (y if self.decoder is None else self.decoder(y)), state

    return Dense().eval()
