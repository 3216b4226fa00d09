"""CMR: independent Bernoulli masks over output rows, right on average, and off in evaluation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tvm_doping.errors import InvalidInput
from tvm_doping.models import CmrSchedule, cancellation, dope, doped_weights, set_cmr
from tvm_doping.models.doping import original


def test_rows_of_each_part_are_dropped_on_their_own() -> None:
    model = dope(nn.Linear(40, 60), compression=3)
    ((_, module, name, weight),) = doped_weights(model)
    kron, S = weight.structured().detach(), (original(module, name) * weight.mask).detach()
    set_cmr(model, 0.5, 0.25)
    seen = set()
    for _ in range(20):
        W = model.weight.detach()
        for row in range(60):
            fits = [
                (a, b)
                for a in (0.0, 2.0)
                for b in (0.0, 4 / 3)
                if torch.allclose(W[row], a * kron[row] + b * S[row], atol=1e-6)
            ]
            assert fits, "each row is a scaled sum of the two parts' rows"
            seen.update(fits[:1])
    assert len(seen) == 4
    model.eval()
    torch.testing.assert_close(model.weight.detach(), kron + S, rtol=0, atol=0)


def test_the_mean_is_the_weight() -> None:
    model = dope(nn.Linear(20, 30), compression=2, structure="zero", cmr=0.4)
    want = model.eval().weight.detach()
    model.train()
    mean = torch.stack([model.weight.detach() for _ in range(3000)]).mean(0)
    assert (mean - want).abs().max() < 0.1 * want.abs().max()


def test_the_schedule() -> None:
    fading = CmrSchedule(structured=0.4, sparse=0.2, start=10, end=20, fade=True)
    assert [fading.rates(step) for step in (9, 10, 15, 20)] == [(0, 0), (0.4, 0.2), (0.2, 0.1), (0, 0)]
    model = dope(nn.Linear(40, 60), compression=3)
    CmrSchedule(structured=0.3, sparse=0.1, end=5).apply(model, 4)
    ((_, _, _, weight),) = doped_weights(model)
    assert (weight.cmr_structured, weight.cmr_sparse) == (0.3, 0.1)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_impossible_rates(rate: float) -> None:
    with pytest.raises(InvalidInput, match="CMR"):
        set_cmr(nn.Linear(2, 2), rate)


def test_how_much_the_parts_undo_each_other() -> None:
    model = dope(nn.Linear(40, 60), compression=3)
    ((_, module, name, weight),) = doped_weights(model)
    S, K = original(module, name), weight.structured().detach()
    with torch.no_grad():
        weight.mask.fill_(True)
        S.copy_(-K)
        assert cancellation(model) == pytest.approx(1)
        S.copy_(K)
        assert cancellation(model) == pytest.approx(-1)
        S.copy_(-K / 2)
        assert cancellation(model) == pytest.approx(1 / 1.25)
        weight.mask.copy_(K.abs() > K.abs().median())
        S.copy_(-K)
        kept = float((K * weight.mask).square().sum())
        assert cancellation(model) == pytest.approx(2 * kept / (kept + float(K.square().sum())))
    assert cancellation(dope(nn.Linear(8, 8), compression=2, structure="zero")) == 0
    assert cancellation(nn.Linear(2, 2)) == 0
