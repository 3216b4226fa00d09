"""`compile(target="cuda-...")` from model to bundle: its library and images, and what a machine without a GPU says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import tvm_doping
from tests.cuda.conftest import SMALL
from tests.cuda.emulation import Driver
from tvm_doping import gpu
from tvm_doping.build_c import compile_c
from tvm_doping.bundle import Bundle


class Tagger(nn.Module):
    """Words in, their tags' logarithms of probabilities out: an embedding, LSTMs, a dense layer and TVM's own operators."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 12)
        self.lstm = nn.LSTM(12, 16, num_layers=2)
        self.out = nn.Linear(16, 40)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(self.out(self.lstm(self.embedding(tokens))[0]), dim=-1)


def model() -> nn.Module:
    torch.manual_seed(0)
    tagger = tvm_doping.dope(Tagger(), compression=4, modules=["lstm", "out"])
    with torch.no_grad():
        for parameter in tagger.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return tagger.eval()


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without one."""
    monkeypatch.setattr(gpu, "compute_capability", lambda: "no driver of NVIDIA's (libcuda.so.1)")


def test_a_model_is_compiled_and_compared_on_the_gpu(with_gpu: Driver) -> None:
    # as small as these are, dense is predicted to be as fast
    bundle = tvm_doping.compile(model(), target=SMALL, force={"structure": "kept"})
    assert bundle.manifest.golden_error is not None and bundle.manifest.golden_error < 3e-6
    layers = {layer.name: layer for layer in bundle.manifest.layers}
    assert [layer.format for layer in layers.values()] == ["sell32"] * 3
    assert b"__global__" not in bundle.library, "the library holds images, not CUDA C"


def test_narrow_weights_are_compared_with_their_rounded_values(with_gpu: Driver) -> None:
    bundle = tvm_doping.compile(model(), target=SMALL, precision="fp16")
    assert bundle.manifest.golden_error is not None and bundle.manifest.golden_error < 1e-5
    assert all(0 < layer.rounding < 0.01 for layer in bundle.manifest.layers)


def test_a_machine_without_a_gpu_compiles_and_says_at_load_what_it_lacks(
    with_gpu: Driver, no_gpu: None, tmp_path: Path
) -> None:
    bundle = tvm_doping.compile(model(), target=SMALL)
    assert bundle.manifest.golden_error is None, "what cannot run is not compared"
    bundle.save(tmp_path / "bundle")
    assert Bundle.load(tmp_path / "bundle", any_machine=True).manifest.target.name == "cuda-sm90"
    with pytest.raises(
        tvm_doping.DopingError, match=r"compute capability 9\.0 or later.*no driver of NVIDIA"
    ):
        tvm_doping.load(tmp_path / "bundle")


def test_importing_needs_no_driver() -> None:
    code = "import tvm_doping.runtime, tvm_doping.build, sys; assert 'libcuda' not in open('/proc/self/maps').read()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_format_that_no_cuda_kernel_reads_is_refused(no_gpu: None) -> None:
    with pytest.raises(tvm_doping.DopingError, match="sell32"):
        tvm_doping.compile(model(), target=SMALL, force={"format": "csr"})


def test_c_without_a_runtime_is_for_cpus(no_gpu: None) -> None:
    with pytest.raises(tvm_doping.DopingError, match="a CPU"):
        compile_c(model(), target="cuda-sm90")
