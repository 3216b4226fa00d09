"""train(): a recipe and data in, a run folder out."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from tvm_doping import checkpoint
from tvm_doping.errors import CheckpointError, RecipeError
from tvm_doping.models.loop import ANEW, Run
from tvm_doping.models.recipe import Recipe, TrainRecipe, differences, dump_recipe, load_recipe
from tvm_doping.models.resume import FILE as STATE
from tvm_doping.models.tasks import TASKS
from tvm_doping.places import check_writable


def train(
    recipe: str | os.PathLike[str] | Recipe,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "runs/latest",
    *,
    resume: bool = True,
    overrides: Mapping[str, Any] | None = None,
    dense: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train a recipe; `out` becomes a run folder (see `checkpoint`). Returns the metrics of its config.

    recipe     a name ("lm-small"), a YAML file or a Recipe; overrides by dotted key: {"train.epochs": 3};
    data       folder that the task reads (recipes on data of an installed package need none);
    resume     go on where a killed run of the same recipe in `out` stopped; a finished one is left as it is;
    dense      run folder of the dense model, whose test metric is set beside this one's;
    progress   show a bar on standard error; a line an epoch where that is no terminal.

    Beside the checkpoint of the best validation stand `recipe.yaml` (resolved), `metrics.jsonl`
    and the state to resume from, written every `train.save_steps` steps. A doped model's checkpoint counts
    as best only once S is as sparse as it is to be. Raises RecipeError, DataError, CheckpointError, and
    TrainingError for a loss that is NaN. Of several processes (`accelerate launch`) the first writes, and gets the
    metrics; the others get none.
    """
    plan = load_recipe(recipe, overrides)
    _keep_memory()
    folder = Path(out)
    check_writable(folder, CheckpointError, f"run folder {folder}")
    task = TASKS[plan.task]
    rival = None if dense is None else _test_metric(dense, task.best)
    read = task.read(plan.data, None if data is None else Path(data), plan.name)
    accelerator = _accelerator(plan.train)
    if accelerator.is_main_process:
        _open(folder, plan, resume)
    accelerator.wait_for_everyone()
    run = Run(plan, folder, read, accelerator, progress)
    metrics = run.finish(rival) if run.at.finished else run.all(rival)
    accelerator.wait_for_everyone()
    return metrics


def _accelerator(loop: TrainRecipe) -> Accelerator:
    """Devices and processes as accelerate was launched; precision and accumulation are the recipe's, which the run keeps."""
    for variable, off, field, own in (
        ("ACCELERATE_MIXED_PRECISION", "no", "precision", loop.precision),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1", "accumulate", str(loop.accumulate)),
    ):
        asked = os.environ.get(variable, off)
        if asked not in (off, own):
            raise RecipeError(
                f"train.{field}",
                f"{asked}, as {variable} (a flag of accelerate launch) says",
                own,
                f"Leave the flag out, and set train.{field}.",
            )
    once = GradientAccumulationPlugin(num_steps=1)
    return Accelerator(mixed_precision="no", gradient_accumulation_plugin=once)


def _open(folder: Path, plan: Recipe, resume: bool) -> None:
    """Make the run folder ready: fresh, or the one that the same recipe was stopped in."""
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        for name in (STATE, checkpoint.CONFIG, checkpoint.WEIGHTS):
            (folder / name).unlink(missing_ok=True)
    resolved, path = dump_recipe(plan), folder / checkpoint.RECIPE
    if (folder / STATE).is_file():
        started = _resolved(path)
        if started != resolved:
            raise CheckpointError(
                f"run folder {folder}",
                "the recipe it was started with, to be resumed",
                f"another ({differences(started, resolved)})",
                ANEW,
            )
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(resolved, encoding="utf-8")
    os.replace(partial, path)


def _resolved(path: Path) -> str:
    """The recipe that a run was started with, with the defaults of fields that came into being since."""
    try:
        return dump_recipe(load_recipe(path))
    except RecipeError:
        return path.read_text(encoding="utf-8") if path.is_file() else ""


def _test_metric(folder: str | os.PathLike[str], name: str) -> float:
    value = checkpoint.read_config(folder).get("metrics", {}).get(f"test_{name}")
    if value is None:
        raise CheckpointError(
            f"{folder}", f"a finished run, with its test {name}", "none yet", "Finish it first."
        )
    return float(value)


def _keep_memory() -> None:
    """Have glibc keep freed memory: taking 16 MB of logits a step from the kernel costs 30 % of the time."""
    trim_threshold, mmap_threshold = -1, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)
