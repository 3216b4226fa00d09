"""A compressed model of the user's own is compiled with the factory that made it, named anew each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tvm_doping
from tvm_doping.cli import main
from tvm_doping.errors import CheckpointError

APP = """
from torch import nn

class Tagger(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.lstm, self.out = nn.LSTM(16, hidden), nn.Linear(hidden, 10)

    def forward(self, x):
        return self.out(self.lstm(x)[0])
"""


def test_from_a_factory_to_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app, run, out = (tmp_path / name for name in ("app.py", "run", "bundle"))
    app.write_text(APP)
    made = tvm_doping.compress(f"{app}:Tagger", run, arguments={"hidden": 24}, compression=4)
    command = ["compile", str(run), "--out", str(out)]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--factory", f"{app}:Tagger"])
    assert not stop.value.code, capsys.readouterr()
    x = torch.randn(5, 2, 16)
    with torch.no_grad(), tvm_doping.load(out) as session:
        np.testing.assert_allclose(session.run(x.numpy()), made.model(x).numpy(), atol=1e-5)
    # no folder runs code, and what was named for one call is not known to the next
    with pytest.raises(CheckpointError, match="--factory"):
        tvm_doping.compile(run)
