"""Models in C, compilers, and how programs for other machines are run here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from tvm_doping.models import LanguageModel, dope


def tool(name: str) -> str:
    """The command; skips where it is missing."""
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here: apt-get install gcc g++ clang gcc-aarch64-linux-gnu qemu-user-static")
    return name


def make(folder: Path, *arguments: str) -> str:
    """What `make` printed; fails where it did."""
    done = subprocess.run(
        ["make", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def language_model(**options: object) -> nn.Module:
    """Embedding, two LSTM layers and an output layer, the last two doped."""
    torch.manual_seed(0)
    model = LanguageModel(vocab=300, embedding=64, hidden=64, layers=2)
    return dope(model, compression=6, modules=["lstm.*", "output"]).eval()


class Sequences(nn.Module):
    """Time is the second axis; a layer norm and a softmax beside the layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.norm, self.out = (
            nn.LSTM(24, 40, batch_first=True),
            nn.LayerNorm(40),
            nn.Linear(40, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.lstm(x)[0])
        return torch.softmax(self.out(y + torch.tanh(y)), -1)


class Both(nn.Module):
    """No stream: both directions, and a mean over time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.out = nn.LSTM(24, 40, bidirectional=True), nn.Linear(80, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(x)[0].mean(0))


class Timeless(nn.Module):
    """No time axis at all, and two results."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.out = nn.Linear(24, 40), nn.Linear(40, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(self.hidden(x))
        return self.out(y), y
