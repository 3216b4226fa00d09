"""The measuring of a GPU, as far as it goes without one: weights, cells, resuming, timing; torch.cuda is a fake one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tvm_doping import build, runtime
from tvm_doping.bench.cells import Variant
from tvm_doping.bench.cuda import barrier, checks, engines, weights
from tvm_doping.bench.cuda import kit as kits
from tvm_doping.bench.cuda import measure as measuring
from tvm_doping.bench.cuda.cells import FULL, MODELS, QUICK, Cell, Model
from tvm_doping.bench.cuda.measure import WrongResult, difference, fractions, measure
from tvm_doping.bench.cuda.timing import Clock, interleave
from tvm_doping.bench.subject import subject_of
from tvm_doping.bench.variants import doped
from tvm_doping.errors import BenchError


class Gpu:
    """torch.cuda with a clock that calls move on."""

    def __init__(self) -> None:
        self.now = 0.0  # milliseconds
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1

    def Event(self, enable_timing: bool) -> Any:
        event = SimpleNamespace(at=0.0, synchronize=self.synchronize)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: end.at - event.at
        return event

    def call(self, ms: float) -> Callable[[], None]:
        return lambda: setattr(self, "now", self.now + ms)


def test_the_weights_of_a_kit_are_those_of_the_layers(tmp_path: Path) -> None:
    lstm = doped(48, Variant(compression=10, pattern="unstructured"))
    weights.save(tmp_path / "layers.npz", lstm)
    loaded = weights.load(tmp_path / "layers.npz")
    for number, layer in enumerate(subject_of(lstm)[0].layers):
        for kind, wanted in (("weight_ih", layer.w_ih), ("weight_hh", layer.w_hh), ("bias_ih", layer.b_ih)):
            np.testing.assert_allclose(loaded[f"{kind}_l{number}"], wanted, atol=1e-7)
    dense = sum(array.nbytes for array in loaded.values())
    assert (tmp_path / "layers.npz").stat().st_size < dense / 3


def test_every_cell_has_a_file_and_its_models() -> None:
    assert len(FULL) == len({cell.file for cell in FULL}) == 3 * 4 * 3
    assert FULL[: len(QUICK)] == QUICK, "what is quick is measured first, and not again"
    assert {model.H for model in MODELS} == {cell.H for cell in FULL}
    assert len({model.name for model in MODELS}) == len(MODELS)


def test_events_time_each_call_alone_and_in_turns() -> None:
    gpu = Gpu()
    clock = Clock(gpu)
    order: list[str] = []

    def noted(name: str, ms: float) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            gpu.now += ms

        return call

    times = interleave({"fast": noted("fast", 0.02), "slow": noted("slow", 3.0)}, clock, seconds=0)
    assert times["fast"]["us"]["median"] == pytest.approx(20)
    assert times["slow"]["us"]["median"] == pytest.approx(3000)
    assert times["slow"]["us"]["samples"] == 7
    turns = [name for name, before in zip(order, ["", *order[:-1]], strict=True) if name != before]
    assert len(turns) > 8, "they take turns"
    assert gpu.waits > 0


class Ticks:
    """A clock that a cell moves on by some seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_is_measured_stays_and_no_cell_is_begun_too_late(tmp_path: Path) -> None:
    ticks, ran, said = Ticks(), list[Cell](), list[str]()

    def cell(kit: Path, each: Cell, seconds: float) -> dict[str, Any]:
        ran.append(each)
        ticks.now += 50
        return {"H": each.H, "engines": {"20x": {"us": {"median": 5.0}}}}

    def go() -> list[Path]:
        return measure(
            tmp_path, tmp_path / "out", QUICK, minutes=3, seconds=1, echo=said.append, cell=cell, clock=ticks
        )

    first = go()  # 50, 100, 150 s; a fourth would end at 200
    assert [path.name for path in first] == [each.file for each in QUICK[:3]]
    assert json.loads(first[0].read_text())["H"] == 1500
    assert "9 cells are left" in said[-1]
    assert [path.name for path in go()] == [each.file for each in QUICK[3:6]]
    assert ran == list(QUICK[:6]), "none twice"


def test_a_wrong_kernel_leaves_the_other_cells_measured(tmp_path: Path) -> None:
    def cell(kit: Path, each: Cell, seconds: float) -> dict[str, Any]:
        if each is QUICK[1]:
            raise WrongResult("20x", "PyTorch's results", "1.0 off", "Report it.")
        return {"engines": {}}

    with pytest.raises(WrongResult, match=r"1\.0 off"):
        measure(tmp_path, tmp_path, QUICK[:3], minutes=1, seconds=1, echo=lambda text: None, cell=cell)
    assert {path.name for path in tmp_path.iterdir()} == {QUICK[0].file, QUICK[2].file}


def test_fractions_of_the_floors() -> None:
    limits = {"bytes_per_us": 2e6, "barrier_us": 1.5}
    assert fractions(4_000_000, 35, 204.0, limits) == {"of_bandwidth": 70 / 204, "of_barriers": 102 / 204}


class Halved:
    """A session that is wrong by a half in its steps."""

    def __init__(self, lstm: Any, wrong: float) -> None:
        self.lstm, self.wrong, self.state = lstm, wrong, None

    def reset(self) -> None:
        self.state = None

    def run(self, x: Any) -> Any:
        y, self.state = self.lstm(x, self.state)
        return y.detach()

    def step(self, x: Any) -> Any:
        return self.run(x[None])[0] + self.wrong


@pytest.mark.parametrize("wrong", [0.0, 0.5])
def test_a_difference_from_pytorch_shows_in_runs_and_steps(wrong: float) -> None:
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(6, 6, 2).requires_grad_(False)
    found = difference(torch, Halved(lstm, wrong), lstm, torch.randn(5, 2, 6))
    assert found == pytest.approx(wrong, abs=1e-6)


def test_the_baselines_compute_the_layers() -> None:
    """On a CPU, whose fp32 they share."""
    lstm, x = torch.nn.LSTM(6, 6, 2).requires_grad_(False), torch.randn(3, 2, 6)
    for make in (engines.cudnn, engines.cudnn_tf32):
        torch.testing.assert_close(make(torch, lstm, x)()[0], lstm(x)[0])
    half = engines.cudnn_fp16(torch, lstm, x)()[0]
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), lstm(x)[0], atol=5e-3, rtol=0)
    assert lstm.weight_hh_l0.dtype == torch.float32, "the layers are left as they were"


def test_the_gemv_floor_multiplies_by_all_gates_of_each_layer_at_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[Any, Any]] = []
    mm = torch.mm

    def noted(a: Any, b: Any, out: Any) -> Any:
        seen.append((a.shape, b.shape))
        return mm(a, b, out=out)

    monkeypatch.setattr(torch, "mm", noted)
    monkeypatch.setattr(engines, "_graph", lambda torch, call: call)
    engines.gemv_floor(torch, torch.nn.LSTM(6, 6, 2).requires_grad_(False), torch.zeros(3, 2, 6))()
    assert seen == [((2, 12), (12, 24))] * 6


class OnCpu:
    """A session over a bundle for this CPU that takes and gives what PyTorch has."""

    def __init__(self, session: Any) -> None:
        self.session, self.bundle, self.graph = session, session.bundle, "captured"
        self.reset = session.reset

    def run(self, x: Any) -> Any:
        return torch.from_numpy(self.session.run(x.numpy()))

    def step(self, x: Any) -> Any:
        return torch.from_numpy(self.session.step(x.numpy()))


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of one model, its bundle for this CPU."""
    folder = tmp_path_factory.mktemp("kit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(barrier, "build", lambda path, machine: path.write_bytes(b"barrier"))
        patch.setattr(checks, "prepare", lambda out, machine, echo: None)
        kits.prepare(folder, [Model(H=48, compression=20)], "x86-64-v2")
    return folder


def test_a_kit_that_is_there_is_kept(kit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barrier, "build", lambda path, machine: path.write_bytes(b"barrier"))
    monkeypatch.setattr(checks, "prepare", lambda out, machine, echo: None)
    monkeypatch.setattr(build, "compile", lambda *_, **__: pytest.fail("compiled again"))
    kits.prepare(kit, [Model(H=48, compression=20)], "x86-64-v2")
    assert {path.name for path in kit.iterdir()} == {"bundles", "layers", "barrier.so", "kit.json"}


@pytest.mark.parametrize("steps", [1, 4])
def test_a_cell_from_its_kit_to_its_results(kit: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """With a CPU in the GPU's place: the results' meaning, not their times."""
    gpu = Gpu()
    gpu.is_available = lambda: True  # type: ignore[attr-defined]
    gpu.get_device_name = lambda number: "a CPU"  # type: ignore[attr-defined]
    monkeypatch.setattr(torch, "cuda", gpu)
    monkeypatch.delitem(engines.BASELINES, "torch-compile")  # it takes seconds
    monkeypatch.setattr(measuring, "MODELS", (Model(H=48, compression=20),))
    monkeypatch.setattr(measuring, "_input", lambda torch, cell: torch.randn(cell.T, cell.batch, cell.H))
    monkeypatch.setattr(measuring, "floors", lambda kit: {"bytes_per_us": 1e6, "barrier_us": 1.0})
    monkeypatch.setattr(torch.nn.LSTM, "cuda", lambda self: self)
    load = runtime.load
    monkeypatch.setattr(runtime, "load", lambda path: OnCpu(load(path)))
    times = {"20x": 0.01, "cudnn": 0.05}

    def interleaved(calls: Any, clock: Clock, *, seconds: float) -> Any:
        assert all(call() is not None for call in calls.values())
        return interleave({n: gpu.call(times.get(n, 0.1)) for n in calls}, clock, seconds=0)

    monkeypatch.setattr(measuring, "interleave", interleaved)
    tuned = {"20x-tuned": kit / "bundles" / "H48-20x", "10x-tuned": kit / "of another model"}
    result = json.loads(json.dumps(measuring.measure_cell(kit, Cell(H=48, batch=2, T=steps), 0.0, tuned)))
    ours, searched = result["engines"]["20x"], result["engines"]["20x-tuned"]
    assert (
        0 <= searched["error"] < 1e-5 and searched["records"] == [] and "10x-tuned" not in result["engines"]
    )
    assert set(searched["schedules"]) == {"lstm.l0", "lstm.l1"}
    assert ours["over_cudnn"] == pytest.approx(5) and 0 <= ours["error"] < 1e-5
    assert ours["of_barriers"] == pytest.approx(2 * (steps - 1) / 10)
    assert {"cudnn", "cudnn-tf32", "cudnn-fp16"} <= set(result["engines"])
    assert "AttributeError" in result["failed"]["gemv-floor"], "what fails says why"
    lstm = engines.lstm_of(torch, weights.load(kit / "layers" / "H48-20x.npz"), 48)
    lstm.weight_hh_l0 += 0.1
    monkeypatch.setattr(engines, "lstm_of", lambda *_: lstm)
    with pytest.raises(WrongResult, match="A kernel is wrong"):
        measuring.measure_cell(kit, Cell(H=48, batch=2, T=steps), 0.0)


def test_no_gpu_is_told_and_measuring_needs_little(tmp_path: Path) -> None:
    """On the machine that measures there are NumPy, pydantic, safetensors, PyTorch and TVM's runtime."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['scipy', 'typer', 'rich', 'yaml', 'accelerate']))\n"
        "import tvm_doping.cuda.session\n"
        "from tvm_doping.bench.cuda.__main__ import main\n"
        f"code = main(['measure', {str(tmp_path)!r}, '--out', {str(tmp_path / 'out')!r}, '--quick'])\n"
        "assert 'tvm' not in sys.modules, 'the compiler'\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "a GPU that PyTorch finds" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_machine_without_pytorch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BenchError, match="PyTorch, which has the baselines"):
        measure(tmp_path, tmp_path / "out", QUICK, minutes=1, seconds=1, echo=lambda text: None)
    assert not (tmp_path / "out").exists()
