"""Beam search with length normalisation, over any decoder that steps: PyTorch's while training, compiled sessions afterwards."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tvm_doping.errors import InvalidInput

# step(tokens (R,) int64, parents (R,) int64) -> logits (R, V) of R = M * width rows, a sentence's beside each other; before the
# tokens are read, row i goes on from the state of row parents[i].
Step = Callable[[np.ndarray, np.ndarray], np.ndarray]


def beam_search(
    step: Step, sentences: int, *, start: int, end: int, longest: int, width: int = 5, penalty: float = 0.6
) -> list[list[int]]:
    """The best sequence that was found for each of M sentences, without start and end.

    A sequence y of t tokens, its end among them, scores log p(y) / ((5 + t) / 6)**penalty (Wu et al. 2016, equation 14, without
    the coverage penalty). One whose end is among the `width` best continuations is finished; a sentence is done when no open
    one can still beat its best finished one. Those that have not ended after `longest` tokens stand as they are.

    Raises InvalidInput for a width or a length below 1.
    """
    if min(width, longest, sentences) < 1 or penalty < 0:
        got = f"width {width}, longest {longest}, sentences {sentences}, penalty {penalty}"
        raise InvalidInput(
            "beam search", "sizes of at least 1, a penalty of at least 0", got, "Correct them."
        )
    rows = np.arange(sentences)[:, None]
    scores = np.full((sentences, width), -np.inf)
    scores[:, 0] = 0.0  # all beams begin alike: one of them is enough
    tokens = np.full((sentences, width), start, np.int64)
    parents = np.broadcast_to(np.arange(width), (sentences, width))
    taken = np.empty((sentences, width, 0), np.int64)
    best_score = np.full(sentences, -np.inf)
    best: list[list[int]] = [[] for _ in range(sentences)]
    done = np.zeros(sentences, bool)
    for length in range(1, longest + 1):
        logits = step(tokens.ravel(), (rows * width + parents).ravel())
        # one more than the beam is wide: the end may be among them
        words, values = _likeliest(logits, width + 1)
        each = words.shape[1]
        words, total = words.reshape(sentences, -1), (scores.ravel()[:, None] + values).reshape(sentences, -1)
        leading = _largest(total, width)
        for index, rank in np.argwhere((np.take_along_axis(words, leading, 1) == end) & ~done[:, None]):
            ended = leading[index, rank]
            score = total[index, ended] / _norm(length, penalty)
            if score > best_score[index]:
                best_score[index], best[index] = score, taken[index, ended // each].tolist()
        total[words == end] = -np.inf
        chosen = _largest(total, width)
        scores, tokens = np.take_along_axis(total, chosen, 1), np.take_along_axis(words, chosen, 1)
        parents = chosen // each
        taken = np.concatenate([taken[rows, parents], tokens[..., None]], 2)
        done |= best_score >= scores[:, 0] / _norm(longest, penalty)
        if done.all():
            break
    for index in np.flatnonzero(~done):
        best[index] = taken[index, 0].tolist()  # it still beats what has ended
    return best


def longest_of(length: int) -> int:
    """How many tokens the translation of a source of so many may have, its end among them."""
    return 2 * length + 10


def _norm(length: int, penalty: float) -> float:
    return ((5 + length) / 6) ** penalty


def _likeliest(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, their log probabilities) of the `count` largest logits of each row, in no order."""
    size = logits.shape[1]
    words = np.argpartition(logits, max(size - count, 0), axis=1)[:, -count:]
    largest = logits.max(1, keepdims=True)
    normaliser = np.log(np.exp(logits - largest).sum(1, keepdims=True, dtype=np.float64)) + largest
    return words, np.take_along_axis(logits, words, 1) - normaliser


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The columns of the largest of each row, largest first."""
    order: np.ndarray = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return order
