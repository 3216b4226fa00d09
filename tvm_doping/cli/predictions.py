"""What a language model's outputs say of a text: logits or log-probabilities of all tokens, or indices of the likeliest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from tvm_doping.errors import InvalidInput

if TYPE_CHECKING:
    from tvm_doping.manifest import Manifest, TensorSpec


class Predictions(Protocol):
    """Made of the outputs of pieces of one stream, in order."""

    def add(self, outputs: list[np.ndarray], following: np.ndarray) -> None:
        """outputs: those of a piece, (T, 1, ...); following: the token after each step, (T,) or one fewer at the text's end."""

    def summary(self) -> str:
        """What the text as a whole came to."""

    def next(self) -> list[tuple[int, str]]:
        """(token, what is known of it) of those that may come next, the likeliest first."""


def predictions_of(manifest: Manifest, vocabulary: int) -> Predictions:
    """How to read the outputs; InvalidInput where they say nothing of tokens."""
    first = manifest.outputs[0]
    if first.dtype == "float32" and first.shape[-1:] == (vocabulary,):
        probabilities = any(layer.plan.get("head") == "softmax" for layer in manifest.layers)
        return _Distribution(probabilities)
    if _is_index(first):
        return _Indices(0, None)
    if len(manifest.outputs) > 1 and _is_index(manifest.outputs[1]) and first.dtype == "float32":
        return _Indices(1, 0)
    raise InvalidInput(
        f"the outputs of bundle {manifest.name!r}",
        f"logits of its {vocabulary} tokens, or indices of tokens (--head of `tvm-doping compile`)",
        f"{first.dtype} {', '.join(map(str, first.shape))}",
        "Give its input as .npy or .npz, and read the outputs with --out.",
    )


def label_of(outputs: list[np.ndarray], manifest: Manifest) -> str:
    """The label that a classifier's outputs for one text name, with its probability where they tell it."""
    found = outputs[0].reshape(-1, outputs[0].shape[-1])[-1] if outputs[0].dtype == np.float32 else None
    if found is None and outputs[0].size == 1:
        return manifest.labels[int(outputs[0].item())]
    if found is None or len(found) != len(manifest.labels):
        raise InvalidInput(
            f"the outputs of bundle {manifest.name!r}",
            f"logits of its {len(manifest.labels)} labels, or the index of one",
            f"{outputs[0].dtype} {', '.join(map(str, outputs[0].shape))}",
            "Read the outputs with --out, or compile with --head argmax.",
        )
    scores = found.astype(np.float64)
    if any(layer.plan.get("head") == "softmax" for layer in manifest.layers):
        scores = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    chances = np.exp(scores - scores.max())
    best = int(chances.argmax())
    return f"{manifest.labels[best]} {chances[best] / chances.sum():.1%}"


def _is_index(spec: TensorSpec) -> bool:
    return spec.dtype == "int64" and len(spec.shape) in (2, 3)


class _Distribution:
    """Logits or log-probabilities, or probabilities; the loss is the mean of -log p(token | tokens before), in nats."""

    def __init__(self, probabilities: bool) -> None:
        self.probabilities = probabilities
        self.loss, self.count, self.last = 0.0, 0, np.zeros(0)

    def add(self, outputs: list[np.ndarray], following: np.ndarray) -> None:
        scores = outputs[0][:, 0].astype(np.float64)
        if self.probabilities:
            scores = np.log(np.maximum(scores, np.finfo(np.float32).tiny))
        scores -= scores.max(axis=-1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(axis=-1, keepdims=True))
        self.loss -= float(scores[np.arange(len(following)), following].sum())
        self.count += len(following)
        self.last = scores[-1]

    def summary(self) -> str:
        return f"perplexity {np.exp(self.loss / self.count):.2f}"

    def next(self) -> list[tuple[int, str]]:
        return [(int(i), f" {np.exp(self.last[i]):.1%}") for i in np.argsort(-self.last)[:5]]


class _Indices:
    """The largest logits' indices, (T, 1) or (T, 1, k), in output `at`; their values in output `values`, if anywhere."""

    def __init__(self, at: int, values: int | None) -> None:
        self.at, self.values = at, values
        self.hits, self.count, self.last = 0, 0, list[tuple[int, str]]()

    def add(self, outputs: list[np.ndarray], following: np.ndarray) -> None:
        indices = outputs[self.at].reshape(len(outputs[self.at]), -1)
        self.hits += int((indices[: len(following)] == following[:, None]).any(axis=1).sum())
        self.count += len(following)
        notes = [""] * indices.shape[1]
        if self.values is not None:
            notes = [f" ({value:.2f})" for value in outputs[self.values][-1].ravel()]
        self.last = list(zip(map(int, indices[-1]), notes, strict=True))

    def summary(self) -> str:
        among = "the one predicted" if len(self.last) == 1 else f"one of the {len(self.last)} predicted"
        return f"{self.hits / self.count:.1%} of those that follow are {among}"

    def next(self) -> list[tuple[int, str]]:
        return self.last
