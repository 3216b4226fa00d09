"""Patterns keep the highest scores that their shape allows, and exactly as many as the density asks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_doping.errors import InvalidInput
from tvm_doping.sparsity import PATTERNS, pack
from tvm_doping.sparsity.patterns import blocks, nm32, unstructured
from tvm_doping.structures import canonical


def scores(m: int, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((m, n), dtype=np.float32)


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(1, 70), st.floats(0, 1), st.integers(0, 999))
def test_law_masks_have_the_shape_and_about_the_density(
    name: str, m: int, n: int, density: float, seed: int
) -> None:
    mask = PATTERNS[name](scores(m, n, seed), density)
    assert mask.shape == (m, n)
    assert mask.dtype == bool
    assert not PATTERNS[name](scores(m, n, seed), 0.0).any()
    assert PATTERNS[name](scores(m, n, seed), 1.0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 70), st.floats(0, 1), st.integers(0, 3))
def test_law_unstructured_keeps_exactly_the_highest_even_with_ties(
    m: int, n: int, density: float, levels: int
) -> None:
    s = np.floor(scores(m, n) * levels)
    mask = unstructured(s, density)
    assert mask.sum() == round(density * m * n)
    if mask.any() and not mask.all():
        assert s[mask].min() >= s[~mask].max()


@pytest.mark.parametrize(("density", "k"), [(0.05, 2), (0.001, 1), (0.125, 4), (0.5, 16)])
def test_nm32_keeps_k_in_every_row_of_every_stripe(density: float, k: int) -> None:
    s = scores(10, 32 * 3 + 3)
    mask = nm32(s, density)
    assert (mask[:, :96].reshape(10, 3, 32).sum(2) == k).all()
    assert (mask[:, 96:].sum(1) == min(k, 3)).all()
    first = np.sort(s[0, :32])
    assert s[0, :32][mask[0, :32]].min() == first[-k]


@pytest.mark.parametrize("rows", [4, 8, 16])
def test_blocks_are_whole_and_fill_their_format(rows: int) -> None:
    s = scores(100, 60)
    mask = blocks(s, 0.1, rows)
    bands = -(-100 // rows)
    padded = np.pad(mask, ((0, bands * rows - 100), (0, 0)), mode="edge").reshape(bands, rows, 60)
    assert (padded.all(1) == padded.any(1)).all()
    assert padded.all(1).sum() == round(0.1 * bands * 60)
    packed = pack(f"block{rows}", canonical(mask * (s + 1)))
    assert len(packed.arrays["columns"]) == round(0.1 * bands * 60)


def test_blocks_go_by_their_sum() -> None:
    s = np.zeros((8, 3))
    s[:4, 1], s[4, 2] = 1.0, 3.0
    assert (np.argwhere(blocks(s, 1 / 6, 4)) == [[0, 1], [1, 1], [2, 1], [3, 1]]).all()


def test_unusable_scores_and_densities_are_named() -> None:
    with pytest.raises(InvalidInput, match="density"):
        unstructured(scores(3, 3), 1.5)
    with pytest.raises(InvalidInput, match="matrix"):
        unstructured(np.zeros(3), 0.5)
    with pytest.raises(InvalidInput, match="NaN"):
        nm32(np.full((2, 2), np.nan), 0.5)
