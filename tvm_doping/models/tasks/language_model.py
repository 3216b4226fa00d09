"""Language modelling: predict the next token; after Zaremba et al. 2014 (arXiv 1409.2329)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from tvm_doping.errors import DataError, InvalidInput
from tvm_doping.models.tasks import awd as regularising
from tvm_doping.models.tasks.protocol import Batch, Logits, Loss, Part, Share, Task, check_tied, perplexity_of
from tvm_doping.models.tasks.text import Corpus, ptb, pydoc_topics

State = tuple[Tensor, Tensor]


class DataRecipe(Part):
    """Which text."""

    kind: Literal["ptb", "pydoc"] = Field(
        default="ptb", description="ptb: a folder of your own; pydoc: the texts of pydoc_data.topics"
    )
    level: Literal["word", "char"] = Field(default="word", description="tokens of pydoc: words or characters")
    least: int = Field(default=3, ge=1, description="pydoc: tokens seen less often are <unk>")


class ModelRecipe(Part):
    """The dense model."""

    embedding: int = Field(ge=1, description="size of the word vectors, I of the first layer")
    hidden: int = Field(ge=1, description="hidden units of each LSTM layer, H")
    layers: int = Field(default=2, ge=1, description="LSTM layers, L")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="between embedding, layers and output")
    tied: bool = Field(default=False, description="output layer and embedding share their weights")
    init_radius: float = Field(
        default=0.1, gt=0, description="every parameter starts uniform in [-radius, radius]"
    )
    awd: regularising.AwdRecipe | None = Field(
        default=None, description="more regularisation; none: dropout alone"
    )

    _ties = model_validator(mode="after")(check_tied)


class LanguageModelling(Task[Corpus]):
    """Streams of text side by side, the LSTM's state carried from segment to segment."""

    data_recipe, model_recipe = DataRecipe, ModelRecipe
    best, higher, unit, classes = "perplexity", False, "tokens", True

    def model(self, **config: Any) -> LanguageModel:
        return LanguageModel(**config)

    def read(self, recipe: DataRecipe, folder: Path | None, name: str) -> Corpus:
        if recipe.kind == "pydoc":
            return pydoc_topics(recipe.level, recipe.least)
        if folder is None:
            raise DataError(
                f"data of {name}", "a folder with ptb.{train,valid,test}.txt", "none", "Name it with --data."
            )
        return ptb(folder)

    def config(self, settings: ModelRecipe, data: Corpus) -> dict[str, Any]:
        left_out = {"init_radius"} | ({"awd"} if settings.awd is None else set())
        return {"vocab": len(data.vocabulary), **settings.model_dump(exclude=left_out)}

    def stored(self, data: Corpus) -> dict[str, Any]:
        return {"tokens": data.tokens, "vocabulary": list(data.vocabulary)}

    def initialise(self, model: nn.Module, settings: ModelRecipe, seed: int) -> None:
        initialise(model, settings.init_radius, seed)

    def batches(
        self, data: Corpus, *, batch: int, steps: int, seed: int, epoch: int, share: Share
    ) -> Sequence[Batch]:
        streams = columns(data.train, batch, "train")[:, share.of(batch)].contiguous()
        found = list(segments(streams, steps, whole=True))
        if not found:
            got = f"{len(data.train)} tokens"
            raise DataError(
                "train split", f"more than {batch * steps} tokens", got, "Lower train.batch or steps."
            )
        return found

    def loss(self, model: nn.Module, batch: Batch, carried: tuple[Tensor, ...] | None) -> Loss:
        tokens, targets = batch
        state = None if carried is None else (carried[0], carried[1])
        value, new, logits = segment_loss(model, tokens, targets, state)
        total = value.detach() * tokens.shape[1]
        # a mean over all tokens in its paper, where this loss is a sum over time
        penalty = regularising.pop_penalty(model)
        objective = value if penalty is None else value + len(tokens) * penalty
        taught = Logits(values=logits, scale=1 / tokens.shape[1])
        return Loss(objective=objective, total=total, count=tokens.numel(), carried=new, logits=taught)

    def evaluate(
        self, model: nn.Module, data: Corpus, split: str, *, batch: int, device: torch.device, final: bool
    ) -> dict[str, float]:
        # at the end one stream, as the published figures are: nothing of the text is left out
        streams = columns(getattr(data, split), 1 if final else batch, split)
        return {"perplexity": perplexity(model, streams, device=device)}

    def shown(self, mean: float) -> tuple[str, float]:
        return "perplexity", perplexity_of(mean)


class LanguageModel(nn.Module):
    """logits = output(dropout(LSTM(dropout(embedding(tokens))))), time first.

    vocab, embedding, hidden, layers: sizes V, E, H, L; dropout: between all of these (training only);
    tied: the output layer uses the embedding's weights (needs E = H); awd: arguments of `awd.Awd`, what training
    does besides or in place of dropout.
    """

    def __init__(
        self,
        vocab: int,
        embedding: int,
        hidden: int,
        layers: int,
        dropout: float = 0.0,
        tied: bool = False,
        awd: Mapping[str, Any] | None = None,
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
        self.awd = None if awd is None else regularising.Awd(**awd)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """tokens (T, N) int64, state (h, c) each (L, N, H) or None for zeros -> logits (T, N, V), new
        state."""
        if self.training and self.awd is not None:
            with _full_precision(self.embedding.weight):
                y, new = self.awd(self, tokens, state)
            return self.output(y), new
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
) -> tuple[Tensor, State, Tensor]:
    """(cross entropy, summed over time and averaged over the batch as Zaremba's learning rates ask; state; logits (T N, V))"""
    with parametrize.cached():  # each doped weight is computed once a segment
        logits, new = model(tokens, state)
    logits = logits.flatten(0, 1)
    loss = functional.cross_entropy(logits, targets.flatten(), reduction="sum") / tokens.shape[1]
    return loss, new, logits


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
    return perplexity_of(total / ((len(data) - 1) * data.shape[1]))


def _full_precision(x: Tensor) -> torch.autocast | nullcontext[None]:
    """No autocast around the LSTM on a CPU: its bfloat16 is slower there, and would round the state at every
    step."""
    cpu = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return torch.autocast("cpu", enabled=False) if cpu else nullcontext()
