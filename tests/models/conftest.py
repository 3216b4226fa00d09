"""A small text in Penn Treebank's form, and a recipe that trains on it in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tvm_doping.models import Recipe
from tvm_doping.models.tasks import language_model as lm


class Stopped(Exception):
    """A training that `stop` has stopped."""


def stop(begin: Callable[[], Any], calls: int, owner: Any = lm, name: str = "segment_loss") -> None:
    """Begin a training that is stopped after so many calls of a function, once a batch: as a process that is killed there."""
    left, real = iter(range(calls)), getattr(owner, name)

    def stopping(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise Stopped
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, stopping)
        with pytest.raises(Stopped):
            begin()
    torch.manual_seed(123)  # whatever the process did meanwhile


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ptb.{train,valid,test}.txt of sentences with something to learn: each word names its successor's
    neighbours."""
    folder, random = tmp_path_factory.mktemp("texts"), np.random.default_rng(1)
    for split, sentences in (("train", 300), ("valid", 30), ("test", 30)):
        lines = []
        for _ in range(sentences):
            word, words = int(random.integers(20)), []
            for _ in range(int(random.integers(4, 12))):
                words.append(f"w{word}")
                word = (word * 3 + int(random.integers(2))) % 20
            lines.append(" ".join(words))
        (folder / f"ptb.{split}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def fields(**train: Any) -> dict[str, Any]:
    """The fields of a tiny doped recipe."""
    return {
        "name": "test",
        "data": {"kind": "ptb"},
        "model": {"embedding": 12, "hidden": 16, "layers": 2, "dropout": 0.1, "init_radius": 0.5},
        "doping": {
            "compression": 4,
            "anneal": {"start": 0.1, "end": 0.5, "frequency": 3},
            "cmr": {"structured": 0.1, "sparse": 0.1},
        },
        "train": {"epochs": 3, "batch": 8, "steps": 10, "hold": 2, "log_steps": 5, "save_steps": 7, **train},
    }


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.model_validate(fields())
