"""What compression costs in accuracy: every method trained with one budget, at every compression factor, with several seeds."""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvm_doping import checkpoint
from tvm_doping.bench import accuracy_plots
from tvm_doping.bench.accuracy_cells import (
    DENSE,
    METHODS,
    OF_METHODS,
    SMALLER,
    Cell,
    cells_of,
    grouped,
    name_of,
)
from tvm_doping.bench.accuracy_speed import compiled
from tvm_doping.bench.machine import describe
from tvm_doping.bench.report import check_folder
from tvm_doping.errors import BenchError, DopingError, InvalidInput
from tvm_doping.models.metrics import read_metrics
from tvm_doping.models.recipe import Recipe, load_recipe
from tvm_doping.models.rivals import smaller_hidden
from tvm_doping.models.tasks import TASKS
from tvm_doping.models.train import train
from tvm_doping.places import write_files
from tvm_doping.strict_json import read_json

FORMAT_VERSION = 1


def run(
    out: str | Path,
    recipe: str,
    *,
    data: str | Path | None = None,
    methods: Sequence[str] = tuple(METHODS),
    compressions: Sequence[float] = (10.0, 20.0),
    seeds: Sequence[int] = (0, 1),
    vary: Mapping[str, Sequence[Any]] | None = None,
    start: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    start_overrides: Mapping[str, Any] | None = None,
    speed: bool = True,
    echo: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train a doped recipe by every method, and dense, and write accuracy.json, accuracy.md and plots after each run.

    recipe   a doped one, by name or path; overrides: of it, for every method alike;
    methods  of METHODS; each with every compression and every seed;
    vary     values of settings under `doping`, such as {"doping.pattern": ["nm32", "block16"]}: each method that has an S is
             trained with every combination of them;
    start    the recipe of a dense model, trained once a seed (with start_overrides), from whose weights every run begins: the
             structured part is then the nearest to a trained weight, and S what it leaves; the smaller dense model has a smaller
             start, trained as long. None: random weights;
    speed    at the end compile the runs of the first seed for this machine and time them (`accuracy_speed`).

    A run is finished, or goes on, where an earlier call of the same settings left it: its folder is `out`/runs/NAME. What an
    accuracy.json in `out` already has of runs is kept where their folders are gone, and so are the times of runs that have not
    changed, if they are of this CPU and version. Returns what accuracy.json holds. Raises
    BenchError for an unknown method or an accuracy.json of other settings, and what `train` raises; a compression that a structure
    cannot reach is reported and left out.
    """
    folder = Path(out)
    vary = dict(vary or {})
    plan = _checked(recipe, methods, overrides, vary)
    task = TASKS[plan.task]
    check_folder(folder)
    results: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "recipe": plan.model_dump(mode="json"),
        "start": None if start is None else load_recipe(start, start_overrides).model_dump(mode="json"),
        "runs": [],
    }
    cells = [Cell(method=DENSE, factor=1.0), *cells_of(methods, compressions, vary)]
    sizes = _hidden(plan, data, compressions) if SMALLER in methods else {}

    def trained(seed: int, changes: Mapping[str, Any], suffix: str = "") -> dict[str, Any]:
        """Train the dense model to start from, and say how a run starts from it."""
        if start is None:
            return {"train.seed": seed}
        first = folder / "runs" / f"start{suffix}-{seed}"
        train(start, data, first, overrides={**(start_overrides or {}), **changes, "train.seed": seed})
        return {"train.seed": seed, "train.start": str(first)}

    # what is kept stays in accuracy.json until something else takes its place: the call may be killed before that
    rows = _kept(folder, results)
    kept = dict(rows)
    for seed in seeds:
        asked = {name_of(cell.row(seed)) for cell in cells}
        there = {name for name in asked if name in kept and not (folder / "runs" / name).is_dir()}
        begun = trained(seed, {}) if asked - there else {}
        for cell in cells:
            row, method, factor = cell.row(seed), cell.method, cell.factor
            name = name_of(row)
            if name in there:
                continue
            settings = cell.settings(overrides or {}, started=start is not None)
            if method == SMALLER:
                settings |= sizes[factor] | trained(seed, sizes[factor], f"-smaller-{factor:g}x")
            else:
                settings |= begun
            try:
                metrics = train(recipe, data, folder / "runs" / name, overrides=settings)
            except DopingError as error:
                if method in (DENSE, SMALLER):
                    raise
                echo(f"{name}: {' '.join(str(error).split())}")
                rows.pop(name, None)
                continue
            row |= _measured(task.best, folder / "runs" / name, metrics)
            rows[name] = kept[name] if name in kept and row.items() <= kept[name].items() else row
            echo(f"{name}: {task.best} {metrics[f'test_{task.best}']:.4g}")
            results["runs"] = list(rows.values())
            _write(folder, results)
    results["runs"] = list(rows.values())
    if speed:
        _time(folder, rows)
    _write(folder, results)
    return results


def _time(folder: Path, rows: Mapping[str, dict[str, Any]]) -> None:
    """Give the first seed's row of each method and compression what its run is as compiled code, unless one of them has it."""
    first = []
    for group in grouped(rows.values()).values():
        there = [name for row in group if (folder / "runs" / (name := name_of(row))).is_dir()]
        if there and not any("compiled" in row for row in group):
            first.append(there[0])
    for name, measured in compiled({name: folder / "runs" / name for name in first}).items():
        rows[name]["compiled"] = measured


def _write(folder: Path, results: Mapping[str, Any]) -> None:
    texts = {"accuracy.json": json.dumps(results), "accuracy.md": markdown(results)}
    write_files(folder, {**texts, **accuracy_plots.plots(results)})


def _kept(folder: Path, results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of an earlier accuracy.json of the same recipes, by name; {} where there is none. Times of another CPU or version
    are left out where the run can be timed again."""
    path = folder / "accuracy.json"
    if not path.is_file():
        return {}
    found = read_json(path, lambda needs, got: BenchError(f"{path}", needs, got, "Move it away."))
    try:
        # recipes gain fields: an earlier one has their defaults
        same = all(
            (found[key] and Recipe.model_validate(found[key]).model_dump(mode="json")) == results[key]
            for key in ("recipe", "start")
        )
        rows = {name_of(row): row for row in found["runs"]}
        if _compiled_by(found["machine"]) != _compiled_by(results["machine"]):
            for name in (name for name in rows if (folder / "runs" / name).is_dir()):
                rows[name].pop("compiled", None)
    except (KeyError, TypeError, ValueError) as error:
        raise BenchError(f"{path}", "what bench-accuracy wrote", str(error), "Move it away.") from error
    if not same:
        raise BenchError(
            f"{path}", "the results of the same recipe and start", "those of others", "Choose another folder."
        )
    return rows


def _compiled_by(machine: Mapping[str, Any]) -> tuple[str, ...]:
    """What times of compiled code depend on."""
    return machine["cpu"], *(machine["versions"][name] for name in ("tvm-doping", "apache-tvm"))


def markdown(results: Mapping[str, Any]) -> str:
    """A row a method and compression: the mean over the seeds, their spread, and what is lost against dense."""
    plan, start = results["recipe"], results["start"]
    task = TASKS[plan["task"]]
    groups = grouped(results["runs"])
    dense = {row["seed"]: row["test"] for row in results["runs"] if row["method"] == DENSE}
    sign = -1 if task.higher else 1
    lines = [
        f"| by parameters | method | test {task.best} | lost against dense | valid | seeds | parameters | bytes | µs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (factor, method), rows in sorted(
        groups.items(), key=lambda one: (one[0][0], sign * _mean(one[1], "test"))
    ):
        values = [row["test"] for row in rows]
        lines.append(
            f"| {factor:g}x | {method} | {_mean(rows, 'test'):#.4g}{_spread(values)} | {_lost(rows, dense, sign)} | "
            f"{_mean(rows, 'valid'):#.4g} | {len(rows)} | {_speed(rows)} |"
        )
    budget = f"{plan['train']['epochs']} epochs"
    if start is not None:
        budget = f"{start['train']['epochs']} epochs dense, then {budget} of each method, dense among them"
    spread = "; after ±, half the distance between the extremes of the seeds" if len(dense) > 1 else ""
    calls = {row["compiled"]["call"] for row in results["runs"] if "compiled" in row}
    compiled_as = "".join(
        f"; parameters, bytes and µs: {call}, compiled, one thread" for call in sorted(calls)
    )
    about = f"{plan['name']}, {budget}{spread}{compiled_as}; {results['machine']['cpu']}"
    return "\n".join([*lines, "", about, ""])


def _speed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Three cells of the table, of the run that was compiled."""
    for row in rows:
        if "compiled" in row:
            of = row["compiled"]
            return f"{of['parameters']:,} | {of['bytes']:,} | {of['us']['median']:.4g}"
    return " | | "


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def _lost(rows: Sequence[Mapping[str, Any]], dense: Mapping[int, float], sign: int) -> str:
    """The mean over the seeds, as a share of the dense metric; nothing where that is 0, as the BLEU of a short training."""
    if not all(dense[row["seed"]] for row in rows):
        return ""
    return f"{statistics.fmean(sign * (row['test'] / dense[row['seed']] - 1) for row in rows):+.1%}"


def _spread(values: Sequence[float]) -> str:
    return f" ± {(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""


def _measured(best: str, folder: Path, metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "test": metrics[f"test_{best}"],
        "valid": metrics[f"valid_{best}"],
        "by_parameters": (checkpoint.read_config(folder).get("compression") or {}).get("by_parameters"),
        "best_epoch": metrics["best_epoch"],
        "epochs": metrics["epochs_done"],
        "seconds": metrics["seconds"],
        **_annealing(folder),
    }


def _annealing(folder: Path) -> dict[str, Any]:
    """{"annealing": [[step, density of S, cancellation], ...]} of a run that thins S; see `models.cancellation`."""
    found = [
        [line["step"], *(float(f"{line[key]:.3g}") for key in ("density", "cancellation"))]
        for line in read_metrics(folder)
        if line["event"] == "train" and "cancellation" in line
    ]
    return {"annealing": found} if any(value for _, _, value in found) else {}


def _hidden(
    plan: Recipe, data: str | Path | None, compressions: Sequence[float]
) -> dict[float, dict[str, int]]:
    """For each compression the settings of the smaller dense model. Raises BenchError where there is none."""
    task, settings = TASKS[plan.task], plan.model
    assert plan.doping is not None
    config = task.config(settings, task.read(plan.data, None if data is None else Path(data), plan.name))
    multiple = next(
        (
            one.multiple_of
            for one in type(settings).model_fields["hidden"].metadata
            if hasattr(one, "multiple_of")
        ),
        1,
    )
    found = {}
    for factor in compressions:
        try:
            hidden = smaller_hidden(
                lambda hidden: task.model(**config | _sized(settings, hidden)),
                settings.model_dump()["hidden"],
                compression=factor,
                modules=plan.doping.modules,
                multiple=multiple,
            )
        except InvalidInput as error:
            raise BenchError(
                f"method {SMALLER} at {factor:g}x", "a hidden size", str(error), "Leave one of them out."
            ) from error
        found[factor] = {f"model.{name}": value for name, value in _sized(settings, hidden).items()}
    return found


def _sized(settings: Any, hidden: int) -> dict[str, int]:
    """The fields of a recipe's `model` that make its hidden size another one."""
    tied = getattr(settings, "tied", False)
    return {"hidden": hidden} | ({"embedding": hidden} if tied else {})


def _checked(
    recipe: str,
    methods: Sequence[str],
    overrides: Mapping[str, Any] | None,
    vary: Mapping[str, Sequence[Any]],
) -> Recipe:
    unknown = sorted(set(methods) - set(METHODS))
    if unknown:
        raise BenchError("methods", f"some of {', '.join(METHODS)}", ", ".join(unknown), "Correct the name.")
    plan = load_recipe(recipe, overrides)
    if plan.doping is None:
        raise BenchError(
            f"recipe {recipe}", "a doped model", "a dense one", "Name the doped recipe, such as lm-small."
        )
    for key, values in vary.items():
        if not key.startswith("doping.") or key in OF_METHODS or not values:
            raise BenchError(
                f"vary {key}",
                f"a setting under doping that is not the method's own ({', '.join(OF_METHODS)}), and values",
                f"{key}={list(values)}",
                "For example doping.pattern=unstructured,nm32.",
            )
        for value in values:
            load_recipe(recipe, {**(overrides or {}), key: value})
    return plan
