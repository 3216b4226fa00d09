"""The proof of tuning: all candidates of a reduced space measured, and how soon each strategy of search finds the best of them.

The exhaustive measurement is a table; each strategy is then run on the table, many times with other seeds, as if it measured.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from tvm_doping.bench import variants
from tvm_doping.bench.cells import Variant
from tvm_doping.bench.machine import describe
from tvm_doping.bench.subject import outputs_alone
from tvm_doping.passes import Context
from tvm_doping.records import Choice, save
from tvm_doping.records.model import geometric_mean
from tvm_doping.targets import Target, resolve
from tvm_doping.tuning import device_of, local_job, record_of
from tvm_doping.tuning.log import Log
from tvm_doping.tuning.metaschedule import Search, Strategy, decisions_of
from tvm_doping.tuning.space import Space, space_of, start
from tvm_doping.tuning.tasks import tasks_of
from tvm_doping.tuning.trials import Best, Budget, Trials
from tvm_doping.tuning.workers import Workers

FORMAT_VERSION = 1
STRATEGIES: tuple[Strategy, ...] = ("xgboost", "evolutionary", "random")
Until = Literal["compiled", "timed", "done"]
UNTIL: tuple[str, ...] = get_args(Until)
# The reduced space: the packings that differ most, without and with AVX-512, and of registers the ends.
_WAYS: dict[bool, tuple[tuple[str, dict[str, int]], ...]] = {
    False: (
        ("csr", {"multiple": 1}),
        ("csr", {"multiple": 4}),
        ("sell16", {"window": 0}),
        ("perm8", {"multiple": 4, "grouped": 0}),
    ),
    True: (
        ("sell16", {"window": 0}),
        ("perm32", {"multiple": 4, "grouped": 0}),
        ("perm32", {"multiple": 4, "grouped": 1}),
        ("perm2x32", {"multiple": 2, "grouped": 0}),
        ("perm2x32", {"multiple": 1, "grouped": 1}),
    ),
}
_REGISTERS = (1.0, 0.5)
_STEPS = (0, 1, 3)
_STRIPES = (1, 2)  # of the recurrent weight, in a batch
TRIALS = 64


def run(
    out: str | os.PathLike[str],
    *,
    H: int,
    compression: float,
    batch: int = 1,
    seeds: int = 10,
    target: str = "auto",
    jobs: int = 1,
    until: Until = "done",
    records: str | os.PathLike[str] | None = None,
    cores: Sequence[int] | None = None,
    lock: str | os.PathLike[str] | None = None,
    echo: Callable[[str], None] = print,
) -> dict[str, Any] | None:
    """Measure one cell into out/H-COMPRESSION-BATCH.json, and return it; a measurement that was stopped goes on.

    All candidates are compiled before the first is timed. until: "compiled" or "timed" to do no more than that now, None is then
    returned and a later call goes on; records: a folder to add the fastest to.

    `ratios` has the time of each candidate over that of the predicted choice, `curves` for each strategy the best ratio found
    after each trial, the median of `seeds` searches, over the best there is.
    """
    machine = resolve(target)
    name = f"H{H}-{compression:g}x-N{batch}"
    folder = Path(out)
    log = Log(folder / f".{name}", resume=True)
    try:
        space = _space(H, compression, batch, machine)
        job = local_job(batch, 1, cores, lock, log.folder)
        with Workers(jobs) as workers:
            trials = Trials(space, machine, workers, log, job, timeout=60, echo=echo)
            if not _finals(log, trials):
                trials.build()
                if until == "compiled":
                    return None
                trials.run(Budget(trials=space.size), "exhaustive")
        final = _finals(log, trials)[-1]
        measured = [line for line in log.of(trials.id) if "choice" in line]
    finally:
        log.close()
    if records is not None:
        best_of = Best.from_line(final, len(measured))
        save(records, device_of(machine), space.task.operation, [record_of(space.task, best_of)])
    if until == "timed":
        return None
    table = {
        Choice.model_validate(line["choice"]).model_dump_json(): geometric_mean(line["ratio"])
        for line in measured
        if "ratio" in line
    }
    best = _remeasured(table, final["finalists"])
    cell = {
        "format_version": FORMAT_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "H": H,
        "compression": compression,
        "batch": batch,
        "candidates": len(table),
        "failed": len(measured) - len(table),
        "seconds_to_time_a_candidate": round(float(np.median([line["seconds"] for line in measured])), 2),
        "best": min(table, key=lambda text: table[text]),
        "best_ratio": best,
        "ratios": sorted(table.values()),
        "curves": {s: _median_curve(space, table, s, seeds, best) for s in STRATEGIES},
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(cell, indent=1))
    return cell


def _finals(log: Log, trials: Trials) -> list[dict[str, Any]]:
    """The lines of final measurements: there is one where the job came to its end."""
    return [line for line in log.of(trials.id) if "finalists" in line]


def _remeasured(table: dict[str, float], finalists: Sequence[tuple[Any, float]]) -> float:
    """Put the second, longer measurement of the fastest few into the table, and return the least ratio there: a first one that
    lies below all of these was luck."""
    again = {Choice.model_validate(choice).model_dump_json(): ratio for choice, ratio in finalists}
    best = min(again.values())
    for text, ratio in table.items():
        table[text] = again.get(text, max(ratio, best))
    return best


def read(out: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The measured cells of a folder."""
    return [json.loads(path.read_text()) for path in sorted(Path(out).glob("H*.json"))]


def plot(cells: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """How close to the best candidate each strategy is, after so many trials; a panel a cell."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(cells), figsize=(4.2 * len(cells), 3.4), squeeze=False, sharey=True)
    for panel, cell in zip(panels[0], cells, strict=True):
        for strategy, curve in cell["curves"].items():
            panel.plot(range(1, len(curve) + 1), [100 * value for value in curve], label=strategy)
        panel.axhline(95, color="grey", linewidth=0.8, linestyle="dotted")
        panel.set_title(f"H {cell['H']}, {cell['compression']:g}x, batch {cell['batch']}")
        panel.set_xlabel(f"trials, of {cell['candidates']} candidates")
    panels[0][0].set_ylabel("speed, % of the best candidate's")
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def curve_of(
    space: Space, table: Mapping[str, float], strategy: Strategy, seed: int, trials: int = TRIALS
) -> list[float]:
    """The best ratio after 1, 2, ... trials of one search that finds its measurements in the table; the first is the predicted
    choice."""
    search = Search(
        [len(axis) for axis in space.axes.values()],
        lambda decisions: space.features(space.choice(decisions)),
        predicted=lambda decisions: space.predicted(space.choice(decisions)),
        strategy=strategy,
        seed=seed,
    )
    first = start(space)
    seen = {first.model_dump_json(): 1.0}
    found = space.decisions(first)
    search.know([] if found is None else [found], [] if found is None else [1e-6])
    curve = [1.0]
    while len(curve) < trials:
        asked = search.ask()
        if not asked:
            break
        choices = [space.choice(decisions_of(candidate)).model_dump_json() for candidate in asked]
        for choice in choices:
            if choice not in seen and len(curve) < trials:
                seen[choice] = table.get(choice, np.inf)
                curve.append(min(curve[-1], seen[choice]))
        search.tell(asked, [1e-6 * seen.get(choice, np.inf) for choice in choices])
    return curve + [curve[-1]] * (trials - len(curve))


def _median_curve(
    space: Space, table: Mapping[str, float], strategy: Strategy, seeds: int, best: float
) -> list[float]:
    """Speed relative to the best candidate's after each trial, the median over the seeds."""
    curves = [curve_of(space, table, strategy, seed) for seed in range(seeds)]
    return [float(f"{best / value:.4f}") for value in np.median(curves, axis=0)]


def _space(H: int, compression: float, batch: int, target: Target) -> Space:
    """The reduced space of an untrained layer: a factor fewer on each axis, the predicted choice in it."""
    model = outputs_alone(variants.doped(H, Variant(compression=compression, pattern="unstructured")))
    (task,) = tasks_of(model, Context(target=target, batch=batch))
    whole = space_of(task, target)
    axes = dict(whole.axes)
    chosen = start(whole)
    chosen_steps = (chosen.numbers.steps // chosen.numbers.lanes,)
    for name, way in chosen.ways.items():
        kept = [w for w in axes[f"{name}.way"] if (w.format, w.params) in _WAYS[target.lanes == 16]]
        plain = way.model_copy(update={"order": "left"})
        axes[f"{name}.way"] = tuple(kept if plain in kept else [*kept, plain])
        axes[f"{name}.order"] = (way.order,)
    axes["registers"] = tuple(r for r in axes["registers"] if r in _REGISTERS)
    axes["steps"] = tuple(s for s in axes["steps"] if s in (_STEPS if batch == 1 else chosen_steps))
    for name in chosen.ways:
        if f"{name}.stripes" in axes:
            axes[f"{name}.stripes"] = _STRIPES if batch > 1 and name == "recurrent" else (1,)
    return replace(whole, axes=axes)
