"""Measuring a kit: one cell after the other, each written as soon as it is measured, as long as there is time."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tvm_doping.bench.cuda import engines, weights
from tvm_doping.bench.cuda.cells import MODELS, Cell
from tvm_doping.bench.cuda.checks import allowed
from tvm_doping.bench.cuda.kit import BARRIER, FACTS, models_of
from tvm_doping.bench.cuda.timing import Clock, interleave
from tvm_doping.bench.cuda.tune import tuned_of
from tvm_doping.bench.machine import describe
from tvm_doping.errors import BenchError
from tvm_doping.places import write_files

FORMAT_VERSION = 1
_STEPS = 1000  # barriers in a row that are timed
_MIB = 2**20


class WrongResult(BenchError):
    """A compiled model whose results are not PyTorch's."""


def measure(
    kit: Path,
    out: Path,
    cells: Sequence[Cell],
    *,
    minutes: float,
    seconds: float,
    echo: Callable[[str], None] = print,
    cell: Callable[[Path, Cell, float], dict[str, Any]] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Path]:
    """Measure the cells that `out` lacks, or whose tuned bundles in it they were measured without, until `minutes` have gone by;
    returns the files of those that were. A cell is not begun when less time is left than the longest before it took.

    cell: what measures one, else `measure_cell`. Raises WrongResult, the first, when the other cells are measured.
    """
    run: Callable[[Path, Cell, float], dict[str, Any]] = cell or (
        lambda kit, each, seconds: measure_cell(kit, each, seconds, tuned_of(kit, out, each, MODELS))
    )
    begin, longest = clock(), 0.0
    done: list[Path] = []
    wrong: list[WrongResult] = []
    todo = [each for each in cells if _lacking(kit, out, each)]
    echo(f"{len(cells)} cells, {len(cells) - len(todo)} of them measured before")
    for each in todo:
        start = clock()
        if start - begin + longest > 60 * minutes:
            echo(
                f"time is up; {len(todo) - len(done) - len(wrong)} cells are left: give the same command again"
            )
            break
        try:
            result = run(kit, each, seconds)
        except WrongResult as error:
            echo(f"{each.file}: {error}")
            wrong.append(error)
            continue
        write_files(out, {each.file: json.dumps(result, indent=1)})
        longest = max(longest, clock() - start)
        done.append(out / each.file)
        echo(f"{each.file}: {clock() - start:.0f} s; {_said(result)}")
    if wrong:
        raise wrong[0]
    return done


def _lacking(kit: Path, out: Path, cell: Cell) -> bool:
    """Whether a cell, or a tuned bundle of it, is yet to be measured."""
    if not (out / cell.file).is_file():
        return True
    return not set(tuned_of(kit, out, cell, MODELS)) <= set(
        json.loads((out / cell.file).read_text())["engines"]
    )


def measure_cell(
    kit: Path, cell: Cell, seconds: float, tuned: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """All engines of a cell: their times, and how far the doped ones are from PyTorch. WrongResult where that is too far.

    tuned: bundles that were compiled with records of this machine, by the names of their engines.
    """
    torch = _torch()

    from tvm_doping.runtime import load

    if not torch.cuda.is_available():
        raise BenchError("measure", "a GPU that PyTorch finds", "none", "Run it on such a machine.")
    clock, limits = Clock(torch.cuda), floors(str(kit))
    models = models_of(kit, cell, MODELS)
    if not models:
        raise BenchError(str(kit), f"models of H = {cell.H}", "none", "Run `prepare` again.")
    x = _input(torch, cell)
    calls: dict[str, engines.Call] = {}
    found: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    dense: dict[str, Any] = {}
    for model in models:
        if model.layers not in dense:
            layers = weights.load(kit / "layers" / model.layers)
            dense[model.layers] = engines.lstm_of(torch, layers, cell.H)
        lstm = dense[model.layers]
        folders = {model.engine: kit / "bundles" / model.name}
        searched = f"{model.engine}-tuned"
        folders |= {searched: tuned[searched]} if tuned and searched in tuned else {}
        for name, folder in folders.items():
            session = load(folder)
            engines.tf32(torch, False)
            error = difference(torch, session, lstm, x)
            limit = allowed(session.bundle.manifest)
            if not error <= limit:
                raise WrongResult(
                    f"{folder.name}, N = {cell.batch}, T = {cell.T}",
                    f"PyTorch's results within {limit:.3g}",
                    f"{error:.3g} off",
                    "A kernel is wrong: report it with the results so far.",
                )
            session.reset()
            manifest = session.bundle.manifest
            calls[name] = engines.doped(session, x)
            found[name] = {
                "error": error,
                "bytes": session.bundle.bytes,
                "graph": session.graph,
                "compression": manifest.compression.model_dump() if manifest.compression else {},
                "schedules": {layer.name: layer.reason for layer in manifest.layers},
                "records": list(manifest.records),
            }
    with torch.inference_mode():
        for name, make in engines.BASELINES.items():
            try:
                call = make(torch, dense[models[0].layers], x)
                call()
                torch.cuda.synchronize()
            except Exception as reason:  # a library that is missing or declines: the others go on
                failed[name] = f"{type(reason).__name__}: {str(reason).strip()[:300]}"
            else:
                calls[name] = call
        times = interleave(calls, clock, seconds=seconds)
    baseline = times["cudnn"]["us"]["median"] if "cudnn" in times else None
    for name, of in times.items():
        row = found.setdefault(name, {}) | of
        if baseline:
            row["over_cudnn"] = baseline / of["us"]["median"]
        if "bytes" in row:
            row |= fractions(row["bytes"], cell.T, of["us"]["median"], limits)
        found[name] = row
    return {
        "format_version": FORMAT_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "gpu": torch.cuda.get_device_name(0),
        "cudnn": torch.backends.cudnn.version(),
        "machine": describe(),
        "floors": limits,
        "H": cell.H,
        "batch": cell.batch,
        "T": cell.T,
        "layers": 2,
        "engines": found,
        "failed": failed,
    }


def difference(torch: Any, session: Any, lstm: Any, x: Any) -> float:
    """The largest |session - PyTorch| over a run from the zero state, and over its first steps one by one; of three at least, as
    one from the zero state needs no W_hh.
    """
    if x.shape[0] < 3:
        x = torch.cat([x] * 3)
    with torch.no_grad():
        wanted = lstm(x)[0]
    got = torch.from_dlpack(session.run(x)).reshape(wanted.shape)
    worst = float((got - wanted).abs().max())
    session.reset()
    for t in range(3):
        step = torch.from_dlpack(session.step(x[t].contiguous()))
        worst = max(worst, float((step - wanted[t]).abs().max()))
    return worst


def fractions(size: int, steps: int, us: float, limits: dict[str, float]) -> dict[str, float]:
    """What of the machine's limits a call reaches, 1 being all: the time that moving its weights once a step takes, over its own;
    and the time of the barriers, one a layer and step but the first, over its own.
    """
    move = size * steps / limits["bytes_per_us"]
    waits = 2 * (steps - 1) * limits["barrier_us"]
    return {"of_bandwidth": move / us, "of_barriers": waits / us}


@lru_cache(maxsize=1)
def floors(kit: str) -> dict[str, float]:
    """This GPU's bytes a microsecond, by a copy (read and written), and the microseconds of a barrier of all blocks."""
    import torch
    import tvm_ffi

    from tvm_doping._runtime import load_cuda_runtime, on_stream, open_library

    clock = Clock(torch.cuda)
    source = torch.empty(512 * _MIB, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = min(clock.us(lambda: target.copy_(source), 10) for _ in range(5))
    load_cuda_runtime()
    barrier = open_library(Path(kit) / BARRIER)["barrier"]
    counter = torch.zeros(1, dtype=torch.int32, device="cuda")

    def waits(steps: int) -> Callable[[], None]:
        shape = torch.empty(steps, device="cuda")

        def call() -> None:
            counter.zero_()
            with on_stream(torch.cuda.current_stream().cuda_stream):
                barrier(tvm_ffi.from_dlpack(shape), tvm_ffi.from_dlpack(counter))

        return call

    many, one = (min(clock.us(waits(steps), 5) for _ in range(5)) for steps in (_STEPS, 1))
    blocks = json.loads((Path(kit) / FACTS).read_text())["blocks"]
    return {
        "bytes_per_us": 2 * source.numel() / copy,
        "barrier_us": (many - one) / (_STEPS - 1),
        "blocks": blocks,
    }


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise BenchError(
            "measure", "PyTorch, which has the baselines", str(error), "Install it for this Python."
        ) from error
    return torch


def _input(torch: Any, cell: Cell) -> Any:
    torch.manual_seed(0)
    return torch.randn((cell.T, cell.batch, cell.H), device="cuda") * 0.5


def _said(result: dict[str, Any]) -> str:
    rows = sorted(result["engines"].items(), key=lambda row: row[1]["us"]["median"])
    return ", ".join(f"{name} {row['us']['median']:.0f} us" for name, row in rows)
