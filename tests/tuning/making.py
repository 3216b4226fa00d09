"""A small model's tasks, and workers to measure with."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import nn

from tvm_doping import targets
from tvm_doping.models import dope
from tvm_doping.passes import Context
from tvm_doping.tuning.tasks import Task, tasks_of


class Small(nn.Module):
    """Two LSTM layers alike, and a linear layer, doped."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.rnn = nn.LSTM(hidden, hidden, 2)
        self.output = nn.Linear(hidden, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.output(self.rnn(x)[0])
        return y


def small(hidden: int = 32) -> Small:
    torch.manual_seed(0)
    model = Small(hidden)
    dope(model, compression=4)
    return model.eval()


@lru_cache
def tasks(
    batch: int = 1, precision: str = "exact", threads: int = 1, target: str = "auto"
) -> tuple[Task, ...]:
    context = Context(
        target=targets.resolve(target),
        batch=batch,
        precision=precision,  # type: ignore[arg-type]
        threads=threads,
    )
    return tuple(tasks_of(small(), context))
