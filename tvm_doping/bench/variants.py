"""Untrained doped LSTM layers of any size, compiled, and the dense layers that they stand for."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from tvm_doping import models
from tvm_doping.bench.cells import Variant
from tvm_doping.bench.subject import Subject, outputs_alone, subject_of
from tvm_doping.build import compile
from tvm_doping.bundle import Bundle
from tvm_doping.targets import Target

_LAYERS = 2
# Forward this many at most are kept: all the models of one H and batch, then those of the next take their place.
_KEPT = 64


def doped(H: int, variant: Variant) -> torch.nn.LSTM:
    """Two layers (I = H), W = B (x) C + S, with the weights that a fixed seed gives; S is spread evenly."""
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(H, H, _LAYERS)
    models.dope(lstm, compression=variant.compression, pattern=variant.pattern)
    return lstm.eval()


def dense(H: int) -> Subject:
    """The same layers, not doped: what the baselines run. Their times do not depend on the weights."""
    torch.manual_seed(0)
    return subject_of(torch.nn.LSTM(H, H, _LAYERS).eval())[0]


def compiled(
    H: int,
    variant: Variant | None,
    target: str | Target,
    batch: int,
    steps: int,
    force: tuple[tuple[str, Any], ...] = (),
    threads: int = 1,
) -> Bundle:
    """The bundle of a variant, of the dense layers for None; compiled once. It was compared with PyTorch then."""
    if variant is None:
        steps = 1  # dense layers are the same for any
    return _compiled(H, variant, target, batch, steps, force, threads)


@lru_cache(maxsize=_KEPT)
def _compiled(
    H: int,
    variant: Variant | None,
    target: str | Target,
    batch: int,
    steps: int,
    force: tuple[tuple[str, Any], ...],
    threads: int,
) -> Bundle:
    if variant is None:
        model, force = dense(H).module(), (("structure", "dense"),)
    else:
        model = doped(H, variant)
    return compile(
        outputs_alone(model), target=target, batch=batch, steps=steps, threads=threads, force=dict(force)
    )


def forget() -> None:
    """Free the bundles."""
    _compiled.cache_clear()
