"""Tuning: the search that makes records. For each layer of a model, candidates are compiled, packed with its weights and timed."""

from __future__ import annotations

import datetime
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tvm_doping import __version__
from tvm_doping._threads import cores as usable_cores
from tvm_doping._tvm import tvm
from tvm_doping.errors import InvalidInput, TargetError
from tvm_doping.gpu import PREFIX, lacking
from tvm_doping.gpu import name as gpu_name
from tvm_doping.kernels.cuda.nvcc import find_nvcc
from tvm_doping.passes import Context
from tvm_doping.passes.recall import STEPS
from tvm_doping.records import Device, Record, own_folder, save
from tvm_doping.records.loops import LOOPS
from tvm_doping.sparsity.values import Precision
from tvm_doping.targets import Target, cpu_name, missing_features, resolve
from tvm_doping.tuning.gpu_space import gpu_space_of
from tvm_doping.tuning.log import Log
from tvm_doping.tuning.loops import LoopTask, LoopTrials, in_words, loop_tasks, said
from tvm_doping.tuning.measure import Job
from tvm_doping.tuning.space import space_of
from tvm_doping.tuning.tasks import Task, imported_of, tasks_of
from tvm_doping.tuning.trials import STRATEGIES, Best, Budget, Strategy, Trials
from tvm_doping.tuning.workers import Workers

__all__ = ["STEPS", "STRATEGIES", "tune"]


def tune(
    model: Any,
    target: str | Target = "auto",
    *,
    trials: int = 64,
    minutes: float | None = None,
    jobs: int | None = None,
    resume: bool = False,
    log: str | os.PathLike[str] = "tuning",
    records: str | os.PathLike[str] | None = None,
    example: Any = None,
    batch: int = 1,
    threads: int = 1,
    precision: Precision = "exact",
    strategy: Strategy = "xgboost",
    seed: int = 0,
    timeout: float = 60.0,
    only: str = "",
    tracker: str | None = None,
    key: str | None = None,
    cpu: str | None = None,
    cores: Sequence[int] | None = None,
    lock: str | os.PathLike[str] | None = None,
    echo: Callable[[str], None] = print,
) -> list[Path]:
    """Measure candidates for each layer and each dense function of a model on this machine (or those of a tracker) and record the
    fastest; returns the files of records. For a GPU's target the layers alone, on the first GPU of this machine, which needs nvcc.

    model      as `compile` takes it, and so are target, example, batch, threads and precision;
    trials     candidates a layer, or what `minutes`, shared among the layers, leave time for;
    jobs       workers that compile side by side (default: the cores, 8 at most); one of them is timed at a time;
    log        a folder: log.jsonl has a line a candidate; resume: go on with what is in it;
    records    the folder to add to (default: the one that `compile` reads by itself);
    strategy   "xgboost"; "evolutionary", the same without a cost model; "random"; "exhaustive", all there are;
    timeout    seconds for a candidate: what takes longer is recorded and skipped;
    only       a regular expression that the names of the layers and functions to tune match;
    tracker    "HOST:PORT" of an RPC tracker that lends devices registered as `key`, and cpu: what to call their CPU (the key);
    cores      to time on (default: the last ones this process may use, one a thread);
    lock       a file that is held while timing, against other jobs on this machine.

    Raises TargetError where this machine cannot run the target's code, TuningError for a job that cannot go on.
    """
    machine = resolve(target)
    _check(machine, trials, minutes, jobs, strategy, only, tracker, key, threads)
    context = Context(target=machine, batch=batch, threads=threads, precision=precision)
    history = Log(log, resume)
    try:
        imported = imported_of(model, example)
        context = replace(context, names=imported.names)
        tasks: list[Task | LoopTask] = [*tasks_of(imported, context)]
        if not machine.gpu:  # dense functions are TVM's own loops there
            tasks += loop_tasks(imported, context, STEPS)
        tasks = [task for task in tasks if any(re.search(only, name) for name in task.names)]
        if not tasks:
            raise InvalidInput(
                "only",
                "the name of an LSTM or linear layer, or of a dense function",
                repr(only),
                "Leave it out for all.",
            )
        end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        device = device_of(machine, cpu or (None if tracker is None else str(key)))
        job = _job(batch, threads, tracker, key, cores, lock, history.folder)
        paths: list[Path] = []
        count = jobs or min(8, max(1, len(usable_cores())))
        with Workers(count) as workers:
            for at, task in enumerate(tasks):
                echo(f"{', '.join(task.names)}: {_in_words(task)}")
                share = (
                    end
                    if end == math.inf
                    else time.monotonic() + (end - time.monotonic()) / (len(tasks) - at)
                )
                budget = Budget(trials=trials if minutes is None else sys.maxsize, end=share)
                options: dict[str, Any] = {"timeout": timeout, "echo": echo}
                if isinstance(task, LoopTask):
                    loops = LoopTrials(task, machine, workers, history, job, **options)
                    found = loops.run(budget, strategy, seed)
                    if found is not None:
                        paths.append(save(records or own_folder(), device, LOOPS, [found]))
                    echo(said(task, found, loops.reason))
                    shutil.rmtree(loops.place, ignore_errors=True)
                    continue
                space = gpu_space_of(task, machine) if machine.gpu else space_of(task, machine)
                run = Trials(space, machine, workers, history, job, **options)
                best = run.run(budget, strategy, seed)
                paths.append(save(records or own_folder(), device, task.operation, [record_of(task, best)]))
                echo(_said(task, best))
                shutil.rmtree(run.weights.parent, ignore_errors=True)
        return list(dict.fromkeys(paths))
    finally:
        history.close()


def _job(
    batch: int,
    threads: int,
    tracker: str | None,
    key: str | None,
    cores: Sequence[int] | None,
    lock: str | os.PathLike[str] | None,
    folder: Path,
) -> Job:
    if tracker is not None:
        return Job(steps=STEPS, batch=batch, threads=threads, device=f"{tracker} {key}")
    return local_job(batch, threads, cores, lock, folder)


def local_job(
    batch: int,
    threads: int,
    cores: Sequence[int] | None,
    lock: str | os.PathLike[str] | None,
    folder: Path,
) -> Job:
    """How candidates are measured on this machine; cores and lock as in `tune`, folder: of the log."""
    timed = tuple(cores or usable_cores()[-threads:])  # the last ones: interrupts gather on the first
    held = str(lock or Path(tempfile.gettempdir()) / f"tvm-doping-{os.getuid()}.lock")
    return Job(
        steps=STEPS,
        batch=batch,
        threads=threads,
        cores=timed,
        locks=(held,),
        building=str(folder / ".building"),
    )


def _check(
    machine: Target,
    trials: int,
    minutes: float | None,
    jobs: int | None,
    strategy: str,
    only: str,
    tracker: str | None,
    key: str | None,
    threads: int,
) -> None:
    try:
        re.compile(only)
    except re.error as error:
        raise InvalidInput("only", "a regular expression", f"{only!r}: {error}", "Correct it.") from error
    for name, value in (("trials", trials), ("minutes", minutes), ("jobs", jobs)):
        if value is not None and value <= 0:
            raise InvalidInput(name, "more than 0", str(value), "Leave it out for the default.")
    if strategy not in STRATEGIES:
        raise InvalidInput("strategy", f"one of {', '.join(STRATEGIES)}", repr(strategy), "Choose one.")
    if machine.gpu:
        _check_gpu(machine, tracker, threads)
        return
    if tracker is None:
        missing = missing_features(machine.features)
        if missing:
            raise TargetError(
                machine.name,
                f"a CPU with {', '.join(missing)} to measure on",
                cpu_name(),
                "Tune there, or on such a machine through a tracker.",
            )
        return
    if not re.fullmatch(r"[^\s:]+:\d+", tracker) or not key:
        raise InvalidInput(
            "tracker", "HOST:PORT, and a key", f"{tracker!r} and {key!r}", "Say both: --tracker H:P --key K."
        )
    if threads > 1:
        raise InvalidInput(
            "threads", "1 with a tracker", str(threads), "Tune for several threads on the device itself."
        )


def _check_gpu(machine: Target, tracker: str | None, threads: int) -> None:
    """What a job for a GPU needs of this machine."""
    if missing := missing_features(machine.features):
        gpu = next((f for f in missing if f.startswith(PREFIX)), "")
        raise TargetError(
            f"tuning for {machine.name}",
            f"a machine with {', '.join(missing)} to measure on",
            (gpu and lacking(gpu)) or cpu_name(),
            "Tune on such a machine; records can be carried (docs/cuda.md). Compile without: the schedules predict.",
        )
    if tracker is not None:
        got = f"the tracker {tracker}"
        raise InvalidInput("tracker", "none for a GPU's target", got, "Tune on the GPU's own machine.")
    if threads > 1:
        raise InvalidInput("threads", "1 for a GPU's target", str(threads), "Leave it out.")
    find_nvcc()
    if tvm.support.cc.get_cc() is None:
        got, remedy = "none in CXX or PATH", "Install g++, or name one in CXX."
        raise TargetError(f"tuning for {machine.name}", "a C++ compiler that links candidates", got, remedy)


def device_of(machine: Target, cpu: str | None = None) -> Device:
    """The machine as records name it; cpu: this one's, or its GPU's, if left out."""
    return Device(
        target=machine.name,
        cpu=cpu or (gpu_name() if machine.gpu else cpu_name()),
        cores=machine.multiprocessors or machine.cores,
        l1=machine.l1,
        l2=machine.l2,
        l3=machine.l3,
    )


def record_of(task: Task, best: Best) -> Record:
    """What was found for a task, as it is kept."""
    packages = ("apache-tvm", "numpy")
    return Record(
        key=task.key,
        choice=best.choice,
        us=best.us,
        heuristic_us=best.reference_us,
        trials=best.trials,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={"tvm-doping": __version__, **{name: metadata.version(name) for name in packages}},
    )


def _in_words(task: Task | LoopTask) -> str:
    if isinstance(task, LoopTask):
        return f"{in_words(task.shapes)}, by MetaSchedule's rules, T = {task.T}"
    return "; ".join(
        f"{name} {w.rows} x {w.columns}, {w.nnz} nonzeros" for name, w in task.key.weights.items()
    )


def _said(task: Task, best: Best) -> str:
    times = ", ".join(f"{us:.4g} us at T = {T} (was {best.reference_us[T]:.4g})" for T, us in best.us.items())
    return f"{', '.join(task.names)}: {times}, best of {best.trials}"
