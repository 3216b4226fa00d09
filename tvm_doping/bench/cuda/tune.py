"""Tuning a kit on the GPU that measures it: for each model and batch a search, its records, and a bundle compiled with them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tvm_doping.bench.cuda import engines, weights
from tvm_doping.bench.cuda.cells import MODELS, Cell, Model
from tvm_doping.bench.cuda.kit import FACTS, models_of
from tvm_doping.errors import TargetError

# In the folder of results: the records, the logs of the searches, the bundles.
RECORDS, LOGS, TUNED = "records", "tuning", "tuned"
_LEAST = 1.0  # minutes for a model and batch: what is asked first is tuned, rather than all of it a little

One = Callable[[Path, Path, Model, int, float], None]


def tune_kit(
    kit: Path,
    out: Path,
    cells: Sequence[Cell],
    *,
    minutes: float,
    echo: Callable[[str], None] = print,
    one: One | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Tune the models of the cells, for their batches, that `out` has no bundle of, until `minutes` have gone by; given again it
    goes on with what is left. What fails is told, and the others go on.

    one: what tunes one, else `tune_one`. Raises TargetError where this machine has no GPU that runs them, or no compiler, and
    ImportError where a package is missing.
    """
    run, end = one or (lambda *given: tune_one(*given, echo=echo)), clock() + 60 * minutes
    pairs = dict.fromkeys((model, cell.batch) for cell in cells for model in models_of(kit, cell, MODELS))
    todo = [pair for pair in pairs if not bundle_of(out, *pair).is_dir()]
    echo(f"{len(pairs)} models and batches to tune, {len(pairs) - len(todo)} of them before")
    for at, (model, batch) in enumerate(todo):
        left = (end - clock()) / 60
        if left <= 0:
            echo(f"time is up; {len(todo) - at} are left: give the same command again")
            return
        try:
            run(kit, out, model, batch, min(left, max(_LEAST, left / (len(todo) - at))))
        except (TargetError, ImportError):
            raise
        except (
            Exception
        ) as error:  # a search that fails, a PyTorch that exports otherwise: the kit is measured all the same
            echo(f"{model.name}, N = {batch}: {type(error).__name__}: {' '.join(str(error).split())[:600]}")


def tune_one(
    kit: Path, out: Path, model: Model, batch: int, minutes: float, *, echo: Callable[[str], None] = print
) -> None:
    """Search a model's layers for a batch, add what was found to the records, and compile a bundle with these."""
    import torch

    from tvm_doping.bench.subject import outputs_alone
    from tvm_doping.build import compile
    from tvm_doping.tuning import tune

    target = json.loads((kit / FACTS).read_text())["target"]
    layers = weights.load(kit / "layers" / model.layers)
    module = outputs_alone(engines.dense_lstm(torch, layers, model.H))
    folder, records = bundle_of(out, model, batch), out / RECORDS
    tune(
        module,
        target,
        minutes=minutes,
        batch=batch,
        precision=model.precision,  # type: ignore[arg-type]
        log=out / LOGS / folder.name,
        resume=True,
        records=records,
        echo=echo,
    )
    bundle = compile(
        module,
        target,
        batch=batch,
        precision=model.precision,  # type: ignore[arg-type]
        records=records,
    )
    bundle.save(folder)


def bundle_of(out: Path, model: Model, batch: int) -> Path:
    """Where the tuned bundle of a model for a batch is."""
    return out / TUNED / f"{model.name}-N{batch}"


def tuned_of(kit: Path, out: Path, cell: Cell, models: Sequence[Model]) -> dict[str, Path]:
    """The tuned bundles of a cell, by the name of their engine."""
    folders = {model: bundle_of(out, model, cell.batch) for model in models_of(kit, cell, models)}
    return {f"{model.engine}-tuned": folder for model, folder in folders.items() if folder.is_dir()}
