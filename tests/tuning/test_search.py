"""MetaSchedule's search over decisions: what it asks for, and that its cost model finds what is fast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tvm_doping.tuning.metaschedule import Search, Strategy, decisions_of

EXTENTS = (12, 2, 12, 2, 4, 3)


def seconds(decisions: Sequence[int]) -> float:
    """A sum over the axes, with the best at a place of its own on each."""
    rng = np.random.default_rng(5)
    return 1e-5 * sum(
        float(rng.permutation(np.linspace(1, 3, n))[at]) for n, at in zip(EXTENTS, decisions, strict=True)
    )


def best_found(strategy: Strategy, trials: int = 64, seed: int = 0) -> float:
    def features(decisions: list[int]) -> np.ndarray:
        one_hot = [np.eye(n)[at] for n, at in zip(EXTENTS, decisions, strict=True)]
        return np.concatenate(one_hot).astype("float32")

    search = Search(EXTENTS, features, strategy=strategy, seed=seed)
    first = [0] * len(EXTENTS)
    search.know([first], [seconds(first)])
    seen = {tuple(first)}
    found = [seconds(first)]
    while len(found) < trials:
        asked = search.ask()
        assert asked
        for candidate in asked:
            decisions = tuple(decisions_of(candidate))
            assert all(0 <= at < n for at, n in zip(decisions, EXTENTS, strict=True))
            if strategy != "random":  # which may draw again what it has drawn
                assert decisions not in seen
            seen.add(decisions)
            found.append(seconds(decisions))
        search.tell(asked, found[-len(asked) :])
    return min(found)


@pytest.mark.slow
def test_the_cost_model_finds_more_than_chance() -> None:
    of = {
        strategy: np.mean([best_found(strategy, seed=s) for s in range(3)])
        for strategy in ("xgboost", "random")
    }  # type: ignore[arg-type]
    assert of["xgboost"] < of["random"]
    assert of["xgboost"] < 1.35e-5 * len(EXTENTS)  # 1e-5 an axis is the best there is, 2e-5 the mean


def test_failures_are_told_and_a_small_space_ends() -> None:
    search = Search((2, 3), lambda decisions: np.array(decisions, "float32"), strategy="evolutionary")
    seen = set()
    for _ in range(10):
        asked = search.ask()
        if not asked:
            break
        seen |= {tuple(decisions_of(c)) for c in asked}
        search.tell(asked, [float("inf")] * len(asked))
    assert not asked and len(seen) == 6
