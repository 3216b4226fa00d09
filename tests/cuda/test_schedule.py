"""What the schedule of a GPU chooses, with the reason, and that what it chooses compiles from a model and runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse as sp
from torch import nn

import tvm_doping
from tests.cuda.emulation import Driver
from tvm_doping import build, gpu, linking, schedules, structures, targets
from tvm_doping.errors import ScheduleError
from tvm_doping.kernels import LstmPlan
from tvm_doping.sparsity.patterns import PATTERNS

SM90 = targets.TARGETS["cuda-sm90"]


def weight(hidden: int, rank: int = 0, pattern: str = "unstructured") -> Any:
    """W (4H, H) at about 20x: an S of 3 %, on a low rank or alone."""
    rng = np.random.default_rng(0)
    mask = PATTERNS[pattern](rng.random((4 * hidden, hidden)), 0.03)
    base: Any = structures.Zero((4 * hidden, hidden))
    if rank:
        U, V = rng.standard_normal((4 * hidden, rank)), rng.standard_normal((rank, hidden))
        base = structures.LowRank(U.astype("float32"), V.astype("float32"))
    return structures.Doped(base, sp.csr_array(mask.astype("float32")))


def plan(w: Any, **options: Any) -> LstmPlan:
    return schedules.choose_lstm(w, w, reverse=False, target=SM90, **options)


def test_a_low_rank_is_kept_where_an_exchange_costs_less_than_the_dense_weight() -> None:
    """H = 650: a block's rows lie in its shared memory, and reading them takes less than a barrier; those of 1500 do not fit."""
    small, large = weight(650, 26), weight(1500, 60)
    assert plan(small).recurrent.part.kind == "dense"
    for options in ({"batch": 32}, {"force": {"structure": "kept"}}):
        assert plan(small, **options).recurrent.part.kind == "low_rank"
    chosen = plan(large)
    assert chosen.recurrent.part.kind == "low_rank" and chosen.recurrent.sparse == "sell32"
    assert "W_hh: low_rank kept; rows of S" in chosen.reason and "multiplied out)" in chosen.reason


def test_blocks_are_given_to_tensor_cores_from_a_batch_on() -> None:
    blocks, spread = weight(650, pattern="block16"), weight(650)
    many: dict[str, Any] = {"batch": 32, "precision": "fp16"}
    assert plan(blocks, **many).recurrent.sparse == "mma16"
    assert "tensor cores" in plan(blocks, **many).reason
    assert plan(spread, **many).recurrent.sparse == "sell32", "tiles of it would be nearly empty"
    assert plan(blocks, batch=1, precision="fp16").recurrent.sparse == "sell32"
    for precision in ("exact", "int8"):
        assert plan(blocks, batch=32, precision=precision).recurrent.sparse == "sell32"  # type: ignore[arg-type]
    assert plan(spread, precision="bf16", force={"format": "mma16"}).recurrent.sparse == "mma16"


def test_tensor_cores_are_refused_without_rounding() -> None:
    with pytest.raises(ScheduleError, match="fp16 or bf16"):
        plan(weight(650), force={"format": "mma16"})


def test_a_model_of_low_ranks_and_blocks_is_compiled_and_compared(
    emulated: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules.grids, "THREADS", (64,))  # each is a fiber
    monkeypatch.setattr(linking, "fatbin", lambda source, arch: emulated.image(source))
    monkeypatch.setattr(build, "find_nvcc", lambda: "nvcc")
    gpu.compute_capability.cache_clear()
    emulated.order("backward")
    torch.manual_seed(0)
    model = tvm_doping.dope(nn.LSTM(16, 32), structure="low_rank", compression=4, pattern="block16")
    bundle = tvm_doping.compile(
        model.eval(),
        target=replace(SM90, multiprocessors=2),
        precision="fp16",
        force={"format": "mma16", "structure": "kept"},
    )
    gpu.compute_capability.cache_clear()
    (layer,) = bundle.manifest.layers
    assert layer.format == "mma16" and layer.values == "fp16"
    assert "low_rank kept" in layer.reason and "as was asked for" in layer.reason
    assert bundle.manifest.golden_error is not None and bundle.manifest.golden_error < 1e-3
