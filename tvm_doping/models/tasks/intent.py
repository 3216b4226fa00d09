"""Intent detection: which of a few things a sentence asks for; a bidirectional LSTM, pooled over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from tvm_doping.errors import DataError, InvalidInput
from tvm_doping.models.tasks.protocol import Batch, Logits, Loss, Part, Share, Task
from tvm_doping.models.tasks.reading import by_length
from tvm_doping.models.tasks.sentences import Sentences, labelled, sample


class DataRecipe(Part):
    """Which sentences."""

    kind: Literal["atis", "sample"] = Field(
        default="atis", description="atis: a folder of yours; sample: made-up sentences that come along"
    )
    least: int = Field(default=2, ge=1, description="words seen less often are <unk>")


class ModelRecipe(Part):
    """The dense model."""

    embedding: int = Field(ge=1, description="size of the word vectors, I of the first layer")
    hidden: int = Field(ge=1, description="hidden units of each LSTM layer and direction, H")
    layers: int = Field(default=1, ge=1, description="LSTM layers, L, each in both directions")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="between embedding, layers and output")


class IntentModel(nn.Module):
    """logits = output(dropout(max over time of LSTM(dropout(embedding(tokens))))), time first.

    vocab, labels, embedding, hidden, layers: sizes V, K, E, H, L; dropout: training only.
    """

    def __init__(
        self, vocab: int, labels: int, embedding: int, hidden: int, layers: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if min(vocab, labels, embedding, hidden, layers) < 1 or not 0 <= dropout < 1:
            raise InvalidInput(
                "IntentModel",
                "sizes of at least 1 and a dropout in [0, 1)",
                f"vocab={vocab}, labels={labels}, embedding={embedding}, hidden={hidden}, layers={layers}, "
                f"dropout={dropout}",
                "Correct the model's settings.",
            )
        self.embedding = nn.Embedding(vocab, embedding)
        self.dropout = nn.Dropout(dropout)
        # nn.LSTM warns about a dropout between layers that one layer does not have
        self.lstm = nn.LSTM(
            embedding, hidden, layers, dropout=dropout if layers > 1 else 0.0, bidirectional=True
        )
        self.output = nn.Linear(2 * hidden, labels)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (T, N) int64, all sentences of one length -> logits (N, K)."""
        y, _ = self.lstm(self.dropout(self.embedding(tokens)))
        return self.output(self.dropout(y.amax(0)))


class IntentDetection(Task[Sentences]):
    """A batch holds sentences of one length, as a compiled model takes them: there is no padding to learn or to mask."""

    data_recipe, model_recipe = DataRecipe, ModelRecipe
    best, higher, unit, classes = "accuracy", True, "sentences", True

    def model(self, **config: Any) -> IntentModel:
        return IntentModel(**config)

    def read(self, recipe: DataRecipe, folder: Path | None, name: str) -> Sentences:
        if recipe.kind == "sample":
            return sample()
        if folder is None:
            raise DataError(
                f"data of {name}", "a folder with train/, dev/ and test/", "none", "Name it with --data."
            )
        return labelled(folder, recipe.least)

    def config(self, settings: ModelRecipe, data: Sentences) -> dict[str, Any]:
        return {"vocab": len(data.vocabulary), "labels": len(data.labels), **settings.model_dump()}

    def stored(self, data: Sentences) -> dict[str, Any]:
        return {"tokens": "words", "vocabulary": list(data.vocabulary), "labels": list(data.labels)}

    def batches(
        self, data: Sentences, *, batch: int, steps: int, seed: int, epoch: int, share: Share
    ) -> Sequence[Batch]:
        """In random order, up to `batch` sentences each; of several processes each takes batches of its own."""
        random = np.random.default_rng((seed, epoch))
        found = list(_same_length(data, "train", random.permutation(len(data.texts["train"])), batch))
        whole = len(found) // share.count * share.count
        if not whole:
            raise DataError(
                "train split", f"{share.count} batches", f"{len(found)}", "Lower train.batch, or add data."
            )
        return [found[i] for i in random.permutation(len(found))[share.index : whole : share.count]]

    def loss(self, model: nn.Module, batch: Batch, carried: tuple[Tensor, ...] | None) -> Loss:
        tokens, wanted = batch
        with parametrize.cached():  # each doped weight is computed once a batch
            logits = model(tokens)
        value, count = functional.cross_entropy(logits, wanted), len(wanted)
        taught = Logits(values=logits, scale=1 / count)
        return Loss(objective=value, total=value.detach() * count, count=count, logits=taught)

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, data: Sentences, split: str, *, batch: int, device: torch.device, final: bool
    ) -> dict[str, float]:
        """Accuracy, and the F1 of all sentences (micro: the same number) and as the mean over labels (macro)."""
        # seconds to import, which only this task needs
        from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

        was_training = model.training
        model.eval()
        guessed, wanted = [], []
        with parametrize.cached():
            for tokens, labels in _same_length(data, split, np.arange(len(data.texts[split])), 256):
                guessed.append(model(tokens.to(device)).argmax(-1).cpu())
                wanted.append(labels)
        model.train(was_training)
        both = (torch.cat(guessed), torch.cat(wanted))
        classes = len(data.labels) + 1  # one for the labels that training never saw
        return {
            "accuracy": float(multiclass_accuracy(*both, classes, average="micro")),
            "micro_f1": float(multiclass_f1_score(*both, classes, average="micro")),
            "macro_f1": float(multiclass_f1_score(*both, classes, average="macro")),
        }


def _same_length(data: Sentences, split: str, order: np.ndarray, batch: int) -> Sequence[Batch]:
    """(tokens (T, N), labels (N)) of sentences of one length each, taken in the given order."""
    texts, labels = data.texts[split], data.wanted[split]
    return [
        (torch.from_numpy(np.stack([texts[i] for i in some], 1)), torch.from_numpy(labels[some]))
        for group in by_length([texts[i] for i in order]).values()
        for some in (order[group[at : at + batch]] for at in range(0, len(group), batch))
    ]
