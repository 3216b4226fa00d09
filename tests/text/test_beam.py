"""Beam search against the search of all sequences, and its bookkeeping."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_doping.beam import Step, beam_search
from tvm_doping.errors import InvalidInput

START, END, SIZE = 0, 1, 4

Logits = Callable[[int, tuple[int, ...]], np.ndarray]


def table(seed: int) -> Logits:
    """Logits (V,) that depend on the sentence and on all tokens before."""

    def logits(sentence: int, tokens: tuple[int, ...]) -> np.ndarray:
        return 2 * np.random.default_rng((seed, sentence, *tokens)).standard_normal(SIZE)

    return logits


def stepping(logits: Logits, width: int) -> Step:
    """A decoder whose state is the tokens so far: were a parent mixed up, its logits would be another's."""
    state: list[tuple[int, ...]] = []

    def step(tokens: np.ndarray, parents: np.ndarray) -> np.ndarray:
        nonlocal state
        before = [state[parent] if state else () for parent in parents]
        state = [(*past, int(token)) for past, token in zip(before, tokens, strict=True)]
        return np.stack([logits(row // width, past) for row, past in enumerate(state)])

    return step


def score(logits: Logits, sentence: int, tokens: tuple[int, ...], penalty: float, longest: int) -> float:
    total = 0.0
    past: tuple[int, ...] = (START,)
    for token in (*tokens, END)[:longest]:
        found = logits(sentence, past)
        total += found[token] - np.log(np.exp(found).sum())
        past = (*past, token)
    return total / ((5 + min(len(tokens) + 1, longest)) / 6) ** penalty


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.6, 1.0]))
def test_a_wide_beam_finds_the_best_of_all(seed: int, penalty: float) -> None:
    longest, logits = 3, table(seed)
    words = [token for token in range(SIZE) if token != END]
    width = len(words) ** longest
    found = beam_search(
        stepping(logits, width), 2, start=START, end=END, longest=longest, width=width, penalty=penalty
    )
    every = [tokens for length in range(longest + 1) for tokens in product(words, repeat=length)]
    for sentence, tokens in enumerate(found):
        best = max(score(logits, sentence, each, penalty, longest) for each in every)
        assert score(logits, sentence, tuple(tokens), penalty, longest) == pytest.approx(best, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_a_sentence_does_not_depend_on_its_neighbours(seed: int, width: int) -> None:
    logits = table(seed)

    def search(sentences: list[int]) -> list[list[int]]:
        step = stepping(lambda row, past: logits(sentences[row], past), width)
        return beam_search(step, len(sentences), start=START, end=END, longest=8, width=width)

    assert search([0, 1, 2]) == [search([sentence])[0] for sentence in range(3)]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_width_one_is_greedy(seed: int) -> None:
    logits = table(seed)
    past: tuple[int, ...] = (START,)
    for _ in range(6):
        token = int(logits(0, past).argmax())
        if token == END:
            break
        past = (*past, token)
    found = beam_search(stepping(logits, 1), 1, start=START, end=END, longest=6, width=1, penalty=0.0)
    assert found == [list(past[1:])]


@pytest.mark.parametrize("wrong", [{"width": 0}, {"longest": 0}, {"penalty": -1.0}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    sizes = {"longest": 5, **wrong}
    with pytest.raises(InvalidInput, match="beam search"):
        beam_search(stepping(table(0), 1), 1, start=START, end=END, **sizes)  # type: ignore[arg-type]
