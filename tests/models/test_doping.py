"""dope, undope, extract, put: the same function, the promised size, in every form that nn.LSTM and nn.Linear
have."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tvm_doping.errors import InvalidInput, UnsupportedModel
from tvm_doping.models import LanguageModel, dope, doped_weights, extract, put, undope
from tvm_doping.models.doping import original
from tvm_doping.models.parametrizations import KroneckerWeight
from tvm_doping.sparsity import PATTERNS

STRUCTURES = ("kronecker", "low_rank", "hybrid", "zero")
LSTMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layers": {"num_layers": 3, "dropout": 0.2},
    "bidirectional": {"bidirectional": True, "num_layers": 2},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
}


def lstm(**form: Any) -> nn.LSTM:
    return nn.LSTM(24, 20, **form)


def formula(weight: Any, S: Tensor) -> Tensor:
    """The documented expression, from the parts."""
    parts = {
        "kronecker": lambda: torch.kron(weight.B, weight.C),
        "low_rank": lambda: weight.U @ weight.V,
        "hybrid": lambda: torch.cat([weight.D, weight.U @ weight.V]),
        "zero": lambda: torch.zeros_like(S),
    }
    return parts[weight.kind]() + S * weight.mask


@pytest.mark.parametrize("form", LSTMS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_doped_lstm_computes_with_the_formula(form: str, structure: Any) -> None:
    model = dope(lstm(**LSTMS[form]), structure=structure, compression=5).eval()
    plain = lstm(**LSTMS[form]).eval()
    rows = list(doped_weights(model))
    directions = 2 if LSTMS[form].get("bidirectional") else 1
    assert len(rows) == 2 * LSTMS[form].get("num_layers", 1) * directions
    state = {name: value for name, value in model.state_dict().items() if "parametrizations" not in name}
    with torch.no_grad():
        for path, module, name, weight in rows:
            state[path] = formula(weight, original(module, name))
            torch.testing.assert_close(getattr(module, name), state[path], rtol=0, atol=0)
        plain.load_state_dict(state)
        x = torch.randn(7, 3, 24)
        for got, want in zip(flat(model(x)), flat(plain(x)), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def flat(output: Any) -> list[Tensor]:
    y, (h, c) = output
    return [y, h, c]


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("pattern", ["unstructured", "block4"])
def test_compression_is_what_was_asked(structure: Any, pattern: str) -> None:
    model = dope(nn.LSTM(64, 48), structure=structure, compression=8, pattern=pattern)
    for path, doped in extract(model).items():
        m, n = doped.shape
        assert doped.S.nnz == sum(int(w.mask.sum()) for p, _, _, w in doped_weights(model) if p == path)
        assert doped.S.nnz <= m * n / 8 * (1 if structure == "zero" else 0.99)
        # blocks come four at a time
        slack = 0 if pattern == "unstructured" else 2
        assert abs(m * n // 8 - doped.parameters) <= slack


@given(
    compression=st.floats(2, 30),
    structure=st.sampled_from(["kronecker", "low_rank", "zero"]),
    pattern=st.sampled_from(sorted(PATTERNS)),
)
def test_unstructured_nonzeros_are_exact_at_any_compression(
    compression: float, structure: Any, pattern: str
) -> None:
    model = dope(nn.Linear(64, 96), structure=structure, compression=compression, pattern=pattern)
    (doped,) = extract(model).values()
    if pattern == "unstructured":
        assert doped.parameters == int(64 * 96 / compression)
    assert 0 < doped.S.nnz < 64 * 96


@pytest.mark.parametrize("structure", STRUCTURES)
def test_extract_equals_the_weight_and_put_restores_it(structure: Any) -> None:
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 20))
    fresh = copy.deepcopy(model)
    dope(model, structure=structure, compression=4).eval()
    doped = extract(model)
    assert set(doped) == {"0.weight", "2.weight"}
    for name, structured in doped.items():
        layer: Any = model.get_submodule(name.partition(".")[0])
        got = layer.weight.detach().numpy()
        np.testing.assert_allclose(structured.to_dense(), got, rtol=1e-6, atol=1e-7)
    put(fresh, doped)
    x = torch.randn(5, 30)
    torch.testing.assert_close(fresh.eval()(x), model(x), rtol=1e-6, atol=1e-6)
    for one, other in zip(extract(fresh).values(), doped.values(), strict=True):
        assert one.S.nnz == other.S.nnz and one.base.kind == structure


@pytest.mark.parametrize("form", LSTMS)
def test_undope_leaves_a_stock_module_with_the_same_outputs(form: str) -> None:
    model = dope(lstm(**LSTMS[form]), compression=5, cmr=0.3).eval()
    x = torch.randn(7, 3, 24)
    want = [part.detach() for part in flat(model(x))]
    assert undope(model) is model
    assert type(model) is nn.LSTM and not model._forward_hooks
    assert sorted(model.state_dict()) == sorted(lstm(**LSTMS[form]).state_dict())
    for got, wanted in zip(flat(model(x)), want, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    torch.stack([part.sum() for part in flat(model(x))]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_gradients_reach_the_factors_and_only_open_entries() -> None:
    model = dope(lstm(), compression=5)
    model(torch.randn(7, 3, 24))[0].square().sum().backward()
    for _, module, name, weight in doped_weights(model):
        assert isinstance(weight, KroneckerWeight)
        assert weight.B.grad is not None and weight.B.grad.abs().sum() > 0
        gradient = original(module, name).grad
        assert gradient is not None
        assert bool((gradient[~weight.mask] == 0).all()) and bool((gradient[weight.mask] != 0).any())


def test_training_and_copying_after_a_step() -> None:
    model = dope(LanguageModel(11, 12, 16, 2), modules="lstm", compression=3)
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    tokens, losses = torch.randint(11, (9, 4)), []
    for _ in range(8):
        logits, _ = model(tokens[:-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    twin = copy.deepcopy(model).eval()  # with weights of the last step's graph still about
    torch.testing.assert_close(twin(tokens)[0], model.eval()(tokens)[0])


def test_cached_weights_are_computed_once_and_get_gradients() -> None:
    model = dope(lstm(), compression=5)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for _, _, _, weight in doped_weights(model):
        weight.register_forward_hook(count)
    with parametrize.cached():
        (model(torch.randn(2, 3, 24))[0].sum() + model(torch.randn(2, 3, 24))[0].sum()).backward()
    assert calls == 2
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_doped_embedding_looks_up_and_learns(structure: Any) -> None:
    model = dope(nn.Embedding(40, 24), modules="*", structure=structure, compression=4)
    tokens = torch.randint(40, (7, 3))
    ((_, module, name, weight),) = doped_weights(model)
    torch.testing.assert_close(model(tokens), formula(weight, original(module, name))[tokens], rtol=0, atol=0)
    model(tokens).square().sum().backward()
    gradient = original(module, name).grad
    assert gradient is not None
    used = torch.zeros(40, 1, dtype=torch.bool)
    used[tokens.flatten()] = True
    assert bool((gradient[~(weight.mask & used)] == 0).all()) and bool((gradient != 0).any())
    assert all(parameter.grad is not None for parameter in model.parameters())
    dense = model(tokens).detach()
    torch.testing.assert_close(undope(model)(tokens), dense)


@pytest.mark.parametrize(
    "option", [{"padding_idx": 0}, {"max_norm": 1.0}, {"sparse": True}, {"scale_grad_by_freq": True}]
)
def test_embeddings_that_cannot_be_doped(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(UnsupportedModel, match=name):
        dope(nn.Sequential(nn.Embedding(40, 24, **option)), modules="0", compression=4)


@pytest.mark.parametrize("init", ["random", "nearest"])
def test_a_tied_weight_is_doped_once(init: Any) -> None:
    model = LanguageModel(50, 16, 16, 1, tied=True).eval()
    before, size = model.output.weight.detach().clone(), len(list(model.parameters()))
    dope(model, modules=["embedding", "output"], compression=3, init=init, structured_scale=0.0)
    ((path, module, name, weight),) = doped_weights(model)
    assert path == "embedding.weight" and list(extract(model)) == [path]
    assert [row[0] for row in doped_weights(model, shared=True)] == [path, "output.weight"]
    assert len(list(model.parameters())) == size + len(list(weight.parameters()))
    kept = weight.mask
    torch.testing.assert_close(model.output.weight[kept], before[kept], rtol=1e-5, atol=1e-6)
    tokens = torch.randint(50, (4, 2))
    model(tokens)[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        original(module, name).add_(1.0)
        assert torch.equal(model.embedding.weight, model.output.weight)
    doped = model(tokens)[0].detach()
    assert undope(model).output.weight is model.embedding.weight
    torch.testing.assert_close(model(tokens)[0], doped)


def test_the_exported_graph_shows_the_expression() -> None:
    model = dope(nn.Sequential(nn.Linear(30, 40)), compression=4, cmr=0.2).eval()
    graph = str(torch.export.export(model, (torch.randn(2, 30),)).graph)
    assert "kron" in graph or "aten.mul" in graph
    assert "bernoulli" not in graph and "dropout" not in graph


def test_nearest_keeps_what_it_can() -> None:
    B, C = np.random.default_rng(0).standard_normal((2, 8, 6)).astype(np.float32)
    W = np.kron(B, C)
    W[3, 5] += 4.0
    model = nn.Linear(36, 64)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(W))
    dope(model, compression=6, factors=(8, 6), init="nearest")
    error = np.abs(model.weight.detach().numpy() - W)
    assert error.max() < 0.05 * np.abs(W).max()


def test_assigning_to_a_doped_weight_keeps_the_factors() -> None:
    model = dope(nn.Linear(24, 40), compression=3)
    weight: Any = next(doped_weights(model))[3]
    before, W = weight.B.detach().clone(), torch.randn(40, 24)
    model.weight = W
    torch.testing.assert_close(weight.B.detach(), before, rtol=0, atol=0)
    torch.testing.assert_close(model.weight.detach()[weight.mask], W[weight.mask], rtol=1e-5, atol=1e-6)


def test_structure_alone() -> None:
    model = dope(nn.LSTM(64, 48), structure="low_rank", compression=4, sparse=False)
    for doped in extract(model).values():
        assert doped.S.nnz == 0 and doped.parameters <= doped.shape[0] * doped.shape[1] / 4
    modules: list[Any] = [model, nn.LSTM(64, 48)]
    spread = [float(module.weight_ih_l0.detach().std()) for module in modules]
    assert spread[0] == pytest.approx(spread[1], rel=0.5)


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        (None, 5),
        ("lstm", 4),
        ("lstm.weight_hh_*", 2),
        (["lstm", "output"], 5),
        ("embedding", 1),
        ("*", 6),
        (["*.weight_ih_l1"], 1),
    ],
)
def test_globs_choose(globs: Any, expected: int) -> None:
    model = dope(LanguageModel(50, 12, 16, 2), modules=globs, compression=3)
    assert len(list(doped_weights(model))) == expected


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"compression": 400}, "compress"),
        ({"compression": 1}, "compression"),
        ({"compression": float("nan")}, "compression"),
        ({"structure": "circulant"}, "kronecker"),
        ({"pattern": "random"}, "nm32"),
        ({"factors": (7, 5)}, "divisors"),
        ({"factors": (8, 6), "structure": "zero"}, "hybrid"),
        ({"rank": 3}, "low_rank"),
        ({"rank": 99, "structure": "low_rank", "compression": 3}, "rank"),
        ({"modules": "decoder"}, "decoder"),
        ({"cmr": 1.0}, "cmr"),
        ({"init": "zeros"}, "init"),
    ],
)
def test_what_cannot_be_doped_is_said(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        dope(lstm(), **arguments)


def test_modules_that_cannot_be_doped() -> None:
    with pytest.raises(UnsupportedModel, match="proj_size=5"):
        dope(nn.Sequential(nn.LSTM(8, 10, proj_size=5)))
    with pytest.raises(InvalidInput, match=r"embedding\.weight"):
        dope(LanguageModel(50, 16, 16, 1, tied=True), compression=3)
    with pytest.raises(InvalidInput, match="undope"):
        dope(dope(lstm(), compression=5), compression=5)
    with pytest.raises(InvalidInput, match="none of them"):
        dope(nn.Sequential(nn.Conv1d(2, 2, 2)))
    with pytest.raises(InvalidInput, match="float64"):
        dope(lstm().double(), compression=5)


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        (
            nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 1)),
            {},
            r"^1\.weight, of shape 1x256: .*at most.*modules=",
        ),
        (
            nn.Sequential(nn.Linear(3, 5)),
            {},
            r"^0\.weight, of shape 5x3: needs a compression of at most 15; got 20",
        ),
        (
            nn.Sequential(nn.Linear(64, 64)),
            {"compression": 1e6},
            r"^0\.weight, of shape 64x64: .*Lower compression",
        ),
        (
            nn.Sequential(nn.Linear(9, 1)),
            {"structure": "hybrid", "compression": 2},
            r"^0\.weight, of shape 1x9",
        ),
    ],
)
def test_a_weight_too_small_is_named_and_nothing_is_doped(
    model: Any, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        dope(model, **arguments)
    assert not list(doped_weights(model))
