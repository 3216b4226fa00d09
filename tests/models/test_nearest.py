"""The nearest structured part and S: better than one shot, better than the usual sizes, and optimal where that can be told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tvm_doping.models import dope, doped_weights, extract
from tvm_doping.models.doping import budget_of
from tvm_doping.models.factors import nearest_start, sizes_of
from tvm_doping.models.nearest import nearest
from tvm_doping.sparsity import PATTERNS
from tvm_doping.structures import Doped

KINDS = ("kronecker", "low_rank", "hybrid")


def weight(m: int, n: int, seed: int = 0) -> np.ndarray:
    """Something like a trained weight: a few strong directions, and entries with heavy tails."""
    random = np.random.default_rng([seed, m, n])
    few = random.standard_normal((m, 3)) @ random.standard_normal((3, n))
    return (random.standard_t(4, (m, n)) + 0.5 * few).astype(np.float32)


def relative(W: np.ndarray, found: Doped) -> float:
    return float(np.linalg.norm(W - found.to_dense()) / np.linalg.norm(W))


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@pytest.mark.parametrize("kind", KINDS)
def test_it_beats_one_shot(kind: str, pattern: str) -> None:
    W = weight(96, 64)
    budget = budget_of(W.size, 6)
    sizes = sizes_of(kind, "w", (96, 64), budget, True, None, None)
    fit = nearest(W, kind, [sizes], budget=budget, pattern=pattern)
    found = fit.doped(W)
    if pattern == "unstructured":
        once = Doped.nearest(W, base=kind, density=found.density, **sizes)
        assert fit.errors[0] == pytest.approx(relative(W, once), rel=1e-5)
        assert found.parameters == budget
    assert list(fit.errors) == sorted(fit.errors, reverse=True)
    assert fit.errors[-1] < 0.995 * fit.errors[0]
    assert fit.errors[-1] == pytest.approx(relative(W, found), rel=1e-4)
    np.testing.assert_array_equal(fit.mask, PATTERNS[pattern](fit.mask.astype(np.float32), fit.mask.mean()))


@pytest.mark.parametrize("kind", ["kronecker", "low_rank"])
def test_searching_sizes_is_never_worse(kind: str) -> None:
    W = weight(96, 64, seed=1)
    budget = budget_of(W.size, 8)
    sizes = sizes_of(kind, "w", (96, 64), budget, True, None, None)
    usual, searched = (
        nearest_start(kind, W, sizes, budget, sparse=True, pattern="unstructured", search=search)
        for search in (False, True)
    )
    assert searched.errors[-1] <= usual.errors[-1] * (0.99 if kind == "kronecker" else 1)
    assert searched.base.parameters + searched.mask.sum() == budget


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16), kind=st.sampled_from(["kronecker", "low_rank"]))
def test_what_is_structured_plus_sparse_is_found_again(seed: int, kind: str) -> None:
    random = np.random.default_rng(seed)
    sizes: Any = {"kronecker": {"shapes": (8, 6, 6, 8)}, "low_rank": {"rank": 2}}[kind]
    base = np.kron(random.standard_normal((8, 6)), random.standard_normal((6, 8)))
    if kind == "low_rank":
        base = random.standard_normal((48, 2)) @ random.standard_normal((2, 48))
    S = np.where(random.random((48, 48)) < 0.03, 6.0, 0.0)
    W = (base + S).astype(np.float32)
    parameters = 96 if kind == "kronecker" else 192
    fit = nearest(W, kind, [sizes], budget=parameters + int(np.count_nonzero(S)) + 40)
    assert fit.errors[-1] < 0.02 < fit.errors[0]


def test_pruning_and_structure_alone_have_one_answer() -> None:
    W = weight(32, 40)
    pruned = nearest(W, "zero", [{}], budget=100)
    assert pruned.doped(W).S.nnz == 100 and len(pruned.errors) == 1
    alone = nearest(W, "low_rank", [{"rank": 2}], budget=200, sparse=False)
    best = np.sqrt((np.linalg.svd(W, compute_uv=False)[2:] ** 2).sum()) / np.linalg.norm(W)
    assert alone.errors[-1] == pytest.approx(best, rel=1e-4) and not alone.mask.any()
    assert nearest(np.zeros((8, 8), np.float32), "low_rank", [{"rank": 2}], budget=40).errors[-1] == 0


@pytest.mark.parametrize("pattern", ["unstructured", "block8"])
def test_dope_starts_there(pattern: str) -> None:
    model = nn.Linear(64, 96)
    W = model.weight.detach().numpy().copy()
    dope(model, compression=6, init="nearest", pattern=pattern)
    ((path, *_, doped),) = doped_weights(model)
    sizes = sizes_of("kronecker", path, W.shape, 1024, True, None, None)
    fit = nearest_start("kronecker", W, sizes, 1024, sparse=True, pattern=pattern, search=True)
    assert relative(W, extract(model)[path]) == pytest.approx(fit.errors[-1], rel=1e-4)
    # S is what the factors leave wherever it may yet be opened, so that an annealing starts from W itself
    doped.mask.fill_(True)
    np.testing.assert_allclose(model.weight.detach().numpy(), W, atol=1e-6)
