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
        total = scores[..., None] + _log_softmax(logits).reshape(sentences, width, -1)
        size = total.shape[2]
        _finish(total, taken, end, length, penalty, done, best_score, best)
        total[..., end] = -np.inf
        chosen = _largest(total.reshape(sentences, -1), width)
        scores = np.take_along_axis(total.reshape(sentences, -1), chosen, 1)
        parents, tokens = chosen // size, chosen % size
        taken = np.concatenate([taken[rows, parents], tokens[..., None]], 2)
        done |= best_score >= scores[:, 0] / _norm(longest, penalty)
        if done.all():
            break
    for index in np.flatnonzero(~done):
        if scores[index, 0] / _norm(longest, penalty) > best_score[index]:
            best[index] = taken[index, 0].tolist()
    return best


def _finish(
    total: np.ndarray,
    taken: np.ndarray,
    end: int,
    length: int,
    penalty: float,
    done: np.ndarray,
    best_score: np.ndarray,
    best: list[list[int]],
) -> None:
    """Keep, of each sentence that is not done, the best sequence that ends here."""
    width, size = total.shape[1:]
    leading = _largest(total.reshape(len(total), -1), width)
    for index, rank in np.argwhere((leading % size == end) & ~done[:, None]):
        beam = leading[index, rank] // size
        score = total[index, beam, end] / _norm(length, penalty)
        if score > best_score[index]:
            best_score[index], best[index] = score, taken[index, beam].tolist()


def _norm(length: int, penalty: float) -> float:
    return ((5 + length) / 6) ** penalty


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The columns of the largest of each row, largest first."""
    some = np.argpartition(-values, min(count, values.shape[1] - 1), axis=1)[:, :count]
    order = np.lexsort((some, -np.take_along_axis(values, some, 1)), axis=1)
    return np.take_along_axis(some, order, 1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
