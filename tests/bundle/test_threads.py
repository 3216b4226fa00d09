"""Sessions on several threads: the same results, bit by bit, whatever their number; and no thread, no time left behind."""

from __future__ import annotations

import gc
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tvm_doping
from tvm_doping import _threads, models, schedules, targets
from tvm_doping.errors import InvalidInput
from tvm_doping.passes import choose
from tvm_doping.sparsity.values import Precision

STEPS, HIDDEN = 18, 40
COUNTS = (2, 3, 8)
LOOK_UP = {
    "perm32": "x86-64-v4",
    "perm32_expand": "x86-64-v4",
    "perm2x32": "x86-64-v4",
    "perm64": "x86-64-v4-bf16",
}
STRUCTURES = ("low_rank", "hybrid")
# Narrow values are widened into buffers, of which each thread needs its own.
NARROW: dict[str, Precision] = {
    "perm64": "bf16",
    "sell16 fp16": "fp16",
    "block16 int8": "int8",
    "dense bf16": "bf16",
    "perm8 bf16": "bf16",
    "perm32 fp16": "fp16",
}


def model(structure: Any = "kronecker") -> nn.Module:
    """An LSTM and a linear layer, W structured (Kronecker products have rows that fill no vector) and a sparse S."""
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(24, HIDDEN)
            self.decoder = nn.Linear(HIDDEN, 52)

        def forward(
            self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]
        ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
            y, state = self.lstm(x, state)
            return self.decoder(y), state

    built = Model()
    if structure != "kronecker":
        return models.dope(built, structure=structure, compression=3).eval()
    weights = [built.lstm.get_parameter(name) for name in ("weight_ih_l0", "weight_hh_l0")]
    for weight in [*weights, built.decoder.weight]:
        rows, columns = weight.shape
        product = torch.kron(torch.randn(4, 4), torch.randn(rows // 4, columns // 4)) * 0.1
        weight.data = product + torch.randn(rows, columns) * (torch.rand(rows, columns) < 0.06)
    return built.eval()


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers small enough for a test are not worth sharing."""
    monkeypatch.setattr(schedules, "worth_sharing", lambda cycles, threads: threads > 1)


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many threads as are asked for, on however few cores; and all of them run each region, however late they come."""
    monkeypatch.setattr(_threads, "cores", lambda: list(range(8)))
    monkeypatch.setattr(_threads, "PATIENCE", 10**15)
    monkeypatch.setattr(_threads, "REST", 0)


@pytest.fixture(scope="module")
def bundles() -> dict[str, Any]:
    return {}


def compiled(bundles: dict[str, Any], form: str) -> Any:
    """The bundle of a format or family, and the type of its values: "sell16", "sell16 fp16"."""
    if form not in bundles:
        kind = form.split()[0]
        with pytest.MonkeyPatch.context() as patch:
            if kind in LOOK_UP:
                for name in ("choose_lstm", "choose_linear"):
                    patch.setattr(choose, name, portable(getattr(schedules, name), LOOK_UP[kind]))
            structure = kind if kind in STRUCTURES else "kronecker"
            kept = "dense" if kind == "dense" else "kept"
            force = {"structure": kept} if kind in ("dense", *STRUCTURES) else {"format": kind}
            state = tuple(torch.zeros(1, 1, HIDDEN) for _ in range(2))
            bundles[form] = tvm_doping.compile(
                model(structure),
                threads=2,
                precision=NARROW.get(form, "exact"),
                force=force,
                example=(torch.randn(3, 1, 24), state),
            )
    return bundles[form]


def portable(choose: Any, target_name: str) -> Any:
    """A choice for AVX-512 whose kernels run on any CPU."""

    def chosen(*weights: Any, target: Any, **options: Any) -> Any:
        plan = choose(*weights, target=targets.resolve(target_name), **options)
        return replace(plan, config=replace(plan.config, portable=True, registers=16))

    return chosen


def results(session: Any, x: np.ndarray) -> list[np.ndarray]:
    y = [session.run(x), *(session.step(x[0]) for _ in range(3))]
    return [*y, *session.state.values()]


def tasks() -> int:
    return len(os.listdir("/proc/self/task"))


def inputs(steps: int, batch: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((steps, batch, 24)).astype("float32")


@pytest.mark.parametrize(
    "form",
    ["csr", "sell16", "perm8", "block16", "dense", *STRUCTURES, *LOOK_UP, *sorted({*NARROW} - {*LOOK_UP})],
)
def test_results_do_not_depend_on_the_number_of_threads(
    bundles: dict[str, Any], many_cores: None, form: str
) -> None:
    bundle = compiled(bundles, form)
    for layer in bundle.manifest.layers:
        products = [layer.plan.get(name) for name in ("input", "recurrent", "product")]
        kinds = {part for p in products if p for part in (p["part"]["kind"], p["sparse"])}
        values = {p["values"] for p in products if p}
        assert (
            form.split()[0] in kinds
            and values == {NARROW.get(form, "fp32")}
            and layer.plan["config"]["shared"]
        )
    for steps, batch in ((1, 1), (STEPS, 1), (2, 8), (3, 11)):
        x = inputs(steps, batch)
        with bundle.session(threads=1) as session:
            alone = results(session, x)
        for threads in COUNTS:
            with bundle.session(threads=threads) as session:
                for got, wanted in zip(results(session, x), alone, strict=True):
                    np.testing.assert_array_equal(got, wanted, err_msg=f"{threads} threads, {x.shape}")


def test_each_thread_runs_each_region(bundles: dict[str, Any], many_cores: None) -> None:
    with compiled(bundles, "csr").session(batch=1, threads=4) as session:
        assert session._pool.regions == [0, 0, 0]
        session.run(inputs(STEPS, 1))
        several = session._pool.regions[0]
        assert several > 0 and session._pool.regions == [several] * 3
        session.run(inputs(1, 1))
        assert session._pool.regions[0] > several and len(set(session._pool.regions)) == 1


@pytest.mark.parametrize(("patience", "rest"), [(0, 0), (2_000, 0), (200_000, 0), (10**15, 0), (200_000, 32)])
def test_threads_that_are_late_change_nothing(
    bundles: dict[str, Any], many_cores: None, monkeypatch: pytest.MonkeyPatch, patience: int, rest: int
) -> None:
    """All threads on one core: each comes when the others are asleep, or is not waited for."""
    monkeypatch.setattr(_threads, "PATIENCE", patience)
    monkeypatch.setattr(_threads, "REST", rest)
    cores = os.sched_getaffinity(0)
    bundle, x = compiled(bundles, "csr"), inputs(STEPS, 1)
    with bundle.session(threads=1) as session:
        wanted = session.run(x)
    os.sched_setaffinity(0, {min(cores)})
    try:
        with bundle.session(threads=3) as session:
            for _ in range(20):
                np.testing.assert_array_equal(session.run(x), wanted)
                session.reset()
                time.sleep(0.001)
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize(("cores", "threads"), [([0], 1), ([0, 5], 2)])
def test_no_more_threads_run_than_there_are_cores(
    bundles: dict[str, Any], monkeypatch: pytest.MonkeyPatch, cores: list[int], threads: int
) -> None:
    monkeypatch.setattr(_threads, "cores", lambda: cores)
    before = tasks()
    with compiled(bundles, "csr").session(threads=8) as session:
        assert session.threads == threads
        assert tasks() == before + threads - 1


def test_the_default_is_what_it_was_compiled_for(
    bundles: dict[str, Any], tmp_path: Path, many_cores: None
) -> None:
    folder = compiled(bundles, "sell16").save(tmp_path / "bundle")
    with tvm_doping.load(folder) as session:
        assert session.threads == 2
    with tvm_doping.load(folder, threads=3, verify=True) as session:
        assert session.threads == 3


def test_closing_ends_the_threads(bundles: dict[str, Any], many_cores: None) -> None:
    before = tasks()
    session = compiled(bundles, "csr").session(threads=4)
    session.run(inputs(2, 1))
    assert tasks() == before + 3
    session.close()
    assert tasks() == before
    dropped = compiled(bundles, "csr").session(threads=4)
    assert tasks() == before + 3
    del dropped
    gc.collect()
    assert tasks() == before


def test_threads_that_wait_take_no_time(bundles: dict[str, Any], many_cores: None) -> None:
    with compiled(bundles, "csr").session(threads=3) as session:
        session.run(inputs(2, 1))
        time.sleep(0.3)
        before = sum(os.times()[:2])
        time.sleep(0.5)
        assert sum(os.times()[:2]) - before < 0.1


def test_sessions_of_two_python_threads_do_not_meet(bundles: dict[str, Any], many_cores: None) -> None:
    bundle = compiled(bundles, "sell16")
    x = inputs(STEPS, 1)
    with bundle.session(threads=1) as session:
        wanted = session.run(x)

    def work(threads: int) -> bool:
        with bundle.session(threads=threads) as session:
            same = []
            for _ in range(20):
                session.reset()
                same.append(np.array_equal(session.run(x), wanted))
        return all(same)

    with ThreadPoolExecutor(3) as executor:
        assert all(executor.map(work, (2, 3, 1)))


def test_a_session_goes_on_in_a_forked_process(bundles: dict[str, Any], many_cores: None) -> None:
    with compiled(bundles, "csr").session(threads=2) as session:
        x = inputs(2, 1)
        wanted = session.run(x)
        session.reset()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, bytes([np.array_equal(session.run(x), wanted)]))
            os._exit(0)
        assert os.read(reader, 1) == b"\x01"
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


def test_pinned_threads_need_a_core_each(bundles: dict[str, Any]) -> None:
    bundle, cores = compiled(bundles, "csr"), len(os.sched_getaffinity(0))
    with pytest.raises(InvalidInput, match="one for each core"):
        bundle.session(threads=cores + 1, pin=True)
    with bundle.session(threads=cores, pin=True) as session:
        session.run(inputs(2, 1))


@pytest.mark.parametrize("threads", [0, -1, True, 1.5, "2", 1000])
def test_bad_numbers_of_threads_are_told(bundles: dict[str, Any], threads: Any) -> None:
    with pytest.raises(InvalidInput, match="threads"):
        compiled(bundles, "csr").session(threads=threads)
    with pytest.raises(InvalidInput, match="threads"):
        tvm_doping.compile(nn.LSTM(3, 3), threads=threads)


def test_a_bundle_for_one_thread_runs_on_no_more(bundles: dict[str, Any]) -> None:
    bundle = compiled(bundles, "csr")
    one = replace(bundle, manifest=bundle.manifest.model_copy(update={"threads": 1}))
    with pytest.raises(InvalidInput, match=r"compiled for one thread.*compile\(threads=2\)"):
        one.session(threads=2)


def test_small_layers_stay_on_the_calling_thread() -> None:
    from tvm_doping.schedules.threads import worth_sharing

    assert not worth_sharing(30_000, 2)  # H = 200 at 20x
    assert worth_sharing(600_000, 2)  # H = 1500 at 20x
    assert not worth_sharing(1e9, 1)
