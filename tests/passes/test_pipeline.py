"""After every pass the module runs and computes what PyTorch computes; no pass does anything twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import tvm_ffi
from torch import nn

from tests.frontend.running import check
from tests.passes.models import doped, plain
from tvm_doping._tvm import relax, tirx
from tvm_doping.frontend import import_model
from tvm_doping.passes import Context, pipeline, run_passes
from tvm_doping.targets import resolve

MODELS = {
    "kronecker": lambda: doped("kronecker"),
    "low rank": lambda: doped("low_rank"),
    "hybrid": lambda: doped("hybrid"),
    "pruned": lambda: doped("zero"),
    "not doped": plain,
    "both directions": lambda: doped("kronecker", bidirectional=True),
}
# One layer of code is compiled for each pass: small sizes, and the two ways through a batch.
SIZES = ((3, 2), (1, 1))


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_every_pass(make: Any) -> None:
    imported = import_model(make())
    context = Context(target=resolve("x86-64-v3"), names=imported.names)
    mod = imported.mod
    for run in pipeline(context):
        before = mod
        mod = run(before)
        relax.analysis.well_formed(mod)
        again = run(mod)
        assert tvm_ffi.structural_equal(again, mod), f"{type(run).__name__} is not idempotent"
        check(imported, mod, context, SIZES)


def test_the_end_of_the_pipeline_is_loops() -> None:
    imported = import_model(doped())
    context = Context(target=resolve("x86-64-v3"), names=imported.names)
    mod = run_passes(imported.mod, pipeline(context))
    kernels = [
        f for _, f in mod.functions_items() if isinstance(f, tirx.PrimFunc) and "doping.report" in f.attrs
    ]
    assert len(kernels) == 2
    text = mod["main"].script()
    assert "doping.lstm" not in text
    assert "GenericConst" not in text
    assert context.weights["embedding.weight"].shape == (9, 16)
    assert "rnn.l0.bias" in context.weights
    assert "output.bias" in context.weights


def test_the_dump(tmp_path: Any) -> None:
    imported = import_model(plain())
    context = Context(target=resolve("x86-64-v3"), names=imported.names)
    run_passes(imported.mod, pipeline(context), tmp_path / "ir")
    files = sorted((tmp_path / "ir").iterdir())
    names = [file.name for file in files]
    assert names[0] == "00_Import.py"
    assert names[1:] == [f"{i:02d}_{type(p).__name__}.py" for i, p in enumerate(pipeline(context), 1)]
    assert all("def main" in file.read_text() for file in files)
    assert sum(file.stat().st_size for file in files) < 41_000 * len(files)


def test_a_model_of_nothing_that_is_doped_goes_through() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 2), nn.ReLU(), nn.Flatten())
    imported = import_model(model, torch.randn(2, 3, 5))
    context = Context(target=resolve("x86-64-v3"), names=imported.names)
    mod = run_passes(imported.mod, pipeline(context))
    check(imported, mod, context, ((1, 2), (1, 1)))


def test_what_depends_on_constants_only_is_computed_once() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.scale = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.softmax(self.table * self.scale, -1).sum(0)

    torch.manual_seed(0)
    imported = import_model(Normed(), torch.randn(3, 4))
    context = Context(target=resolve("x86-64-v3"), names=imported.names)
    mod = run_passes(imported.mod, pipeline(context))
    assert mod["main"].script().count("R.call_tir(") == 1
    check(imported, mod, context, ((1, 3),))
