"""Dense loops of a model, which no kernel of ours replaces: tasks, and trials with MetaSchedule's own rules."""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any

import numpy as np

from tvm_doping import __version__
from tvm_doping._tvm import tvm
from tvm_doping.kernels import traced
from tvm_doping.passes import Context, pipeline, run_passes
from tvm_doping.passes.recall import Recall, dense, sizes_of, tvm_version
from tvm_doping.records import LoopRecord, Workload
from tvm_doping.targets import Target
from tvm_doping.tuning import worker
from tvm_doping.tuning.log import Log
from tvm_doping.tuning.measure import Job, LoopPlan, typical
from tvm_doping.tuning.rules import Rules
from tvm_doping.tuning.trials import (
    FINAL_ROUNDS,
    FINALISTS,
    GAIN,
    Budget,
    measured_last,
    place_of,
    so_far,
)
from tvm_doping.tuning.workers import Workers

_IDLE = 8  # rounds without a new candidate, after which there are hardly any


@dataclass(frozen=True, kw_only=True)
class LoopTask:
    """A dense function, as `compile` has it, for one number of steps.

    function  as Lower left it, its symbols included; fixed: the same for T and the streams to be fast for.
    """

    name: str
    T: int
    function: Any = field(repr=False)
    fixed: Any = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """As `only` matches them."""
        return (self.name,)

    @property
    def key(self) -> Workload:
        """What its record is looked up by."""
        return Workload(hash=traced.hash_of(traced.workload(self.fixed)), tvm=tvm_version())

    @property
    def shapes(self) -> traced.Shapes:
        """Of its arguments, results last."""
        return traced.shapes_of(self.fixed)


def loop_tasks(imported: Any, context: Context, steps: tuple[int, ...]) -> list[LoopTask]:
    """The dense functions of an imported model, for each T; one that comes twice, once."""
    passes = [step for step in pipeline(replace(context, records=None)) if not isinstance(step, Recall)]
    mod = run_passes(imported.mod, passes)
    found: dict[str, LoopTask] = {}
    for gv, function in dense(mod):
        for T, fixed in sizes_of(function, context.batch, steps):
            task = LoopTask(name=gv.name_hint, T=T, function=function, fixed=fixed)
            found.setdefault(task.key.hash, task)
    return list(found.values())


class LoopTrials:
    """The search of one task: traces asked for, measured beside the loops that `compile` makes itself, logged, the best told."""

    def __init__(
        self,
        task: LoopTask,
        target: Target,
        workers: Workers,
        log: Log,
        job: Job,
        *,
        timeout: float,
        echo: Callable[[str], None],
    ) -> None:
        self.task, self.target, self.workers, self.log = task, target, workers, log
        self.timeout, self.echo, self.started = timeout, echo, time.monotonic()
        job = replace(job, steps=(task.T,))
        self.id, self.place = place_of(log, task.key.model_dump_json(), target, job)
        self.job = replace(job, kept=str(self.place))
        self.file = self.place / "loops.json"
        mod = tvm.IRModule({"candidate": task.function.with_attr("global_symbol", "candidate")})
        self.file.write_text(tvm.ir.save_json(mod))
        self.undisturbed: dict[int, float] = {}
        self.scores: dict[str, float] = {}  # a trace as JSON -> its time over that of compile's own loops
        self.before = 0
        self.reason = "no candidate was measured in the time"  # why there is no record

    def run(self, budget: Budget, strategy: str = "xgboost", seed: int = 0) -> LoopRecord | None:
        """Search until the budget is spent, then measure the best few once more; None where compile's own loops are as fast."""
        for line in (line for line in self.log.of(self.id) if "trace" in line):
            self._know(line)
        self.before = len(self.scores)
        ways: Any = "random" if strategy == "exhaustive" else strategy  # there is no end to tile sizes
        # one that goes on draws other candidates than it did before it was stopped
        rules = Rules(
            traced.workload(self.task.fixed), self.target.tvm(), strategy=ways, seed=seed + self.before
        )
        rules.know([json.loads(text) for text in self.scores], [1e-6 * s for s in self.scores.values()])
        idle = 0  # rounds, one after the other, in which nothing was new
        while len(self.scores) < budget.trials and time.monotonic() < budget.end and idle < _IDLE:
            asked = rules.ask()
            traces = {_text(trace): trace for trace in asked}
            if not traces:
                break
            fresh = [trace for text, trace in traces.items() if text not in self.scores]
            idle = 0 if fresh else idle + 1
            list(self._measure(fresh[: budget.trials - len(self.scores)]))
            if all(text in self.scores for text in traces):
                rules.tell([1e-6 * self.scores[_text(trace)] for trace in asked])
            if fresh:
                self.echo(self._progress(budget))
        return self._final()

    def _measure(self, traces: list[list[Any]]) -> Iterator[dict[str, Any]]:
        requests: dict[Any, dict[str, Any]] = {
            at: self._request([None, trace]) for at, trace in enumerate(traces)
        }
        for at, reply in self.workers.run(requests):
            trace = traces[int(str(at))]
            line: dict[str, Any] = {"task": self.id, "layer": self.task.name, "trial": len(self.scores)}
            line |= {"T": self.task.T, "seconds": reply["seconds"], "at": round(time.time(), 1)}
            if "us" in reply:
                own, us = (typical(samples[str(self.task.T)]) for samples in reply["us"])
                self.undisturbed[self.task.T] = min(own, self.undisturbed.get(self.task.T, own))
                line |= {"us": us, "reference_us": own, "ratio": float(f"{us / own:.5g}")}
            else:
                line |= {"error": reply["error"], "kind": reply["kind"]}
            line["trace"] = trace
            self.log.add(line)
            self._know(line)
            yield line

    def _know(self, line: Mapping[str, Any]) -> None:
        self.scores[_text(line["trace"])] = line.get("ratio", math.inf)
        if "error" in line:
            self.reason = f"no candidate ran ({line['error']})"

    def _final(self) -> LoopRecord | None:
        """The record of the fastest, measured once more beside compile's own loops."""
        ranked = sorted((score, text) for text, score in self.scores.items() if score < math.inf)
        if not ranked:
            return None

        def alone(traces: list[Any]) -> list[Any]:
            list(self._measure(traces))
            return [trace for trace in traces if self.scores[_text(trace)] < math.inf]

        # own loops twice: what their two times differ by is how much a difference means nothing
        best_few = [json.loads(text) for _, text in ranked[:FINALISTS]]
        finalists, reply = measured_last(best_few, lambda some: self._together([None, *some, None]), alone)
        if not finalists:
            self.reason = "the best candidates did not run once more"
            return None
        traces = [None, *finalists, None]
        *us, again = [typical(samples[str(self.task.T)]) for samples in reply["us"]]
        best = 1 + int(np.argmin(us[1:]))
        line = {"task": self.id, "layer": self.task.name, "T": self.task.T, "finalists": us, "again": again}
        self.log.add({**line, "wall": round(time.monotonic() - self.started, 1)})
        if us[best] > GAIN * us[0] - abs(us[0] - again):
            self.reason = "compile's own loops are as fast"
            return None
        packages = ("apache-tvm", "numpy")
        return LoopRecord(
            key=self.task.key,
            name=self.task.name,
            shapes=self.task.shapes,
            trace=(traces[best][0], traces[best][1]),
            us={self.task.T: us[best]},
            heuristic_us={self.task.T: us[0]},
            trials=len(self.scores),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            versions={"tvm-doping": __version__, **{name: metadata.version(name) for name in packages}},
        )

    def _together(self, traces: list[Any]) -> dict[str, Any]:
        request = self._request(traces, rounds=FINAL_ROUNDS)
        request["timeout"] *= len(traces)
        ((_, reply),) = list(self.workers.run({"final": request}))
        return reply

    def _request(self, traces: list[Any], rounds: int | None = None) -> dict[str, Any]:
        plans = [LoopPlan(shapes=self.task.shapes, trace=trace) for trace in traces]
        return worker.request(
            plans, "loops", self.file, self.target, self.job, self.timeout, rounds, self.undisturbed
        )

    def _progress(self, budget: Budget) -> str:
        done, spent = len(self.scores), time.monotonic() - self.started
        left = budget.left(done, done - self.before, spent)
        of = f" of {budget.trials}" if budget.end == math.inf else ""  # else as many as there is time for
        candidates = f"{self.task.name}, T = {self.task.T}: {done}{of} candidates"
        best = so_far(self.scores, "compile's own loops")
        return f"{candidates}{best}, {left:.0f} s left"


def said(task: LoopTask, record: LoopRecord | None, reason: str) -> str:
    """What a job says of a task's end; reason: why there is no record."""
    if record is None:
        return f"{task.name}, T = {task.T}: {reason}: no record"
    ((T, us),) = record.us.items()
    return f"{task.name}: {us:.4g} us at T = {T} (was {record.heuristic_us[T]:.4g}), best of {record.trials}"


def in_words(shapes: traced.Shapes) -> str:
    """The shapes of a task."""
    return ", ".join("x".join(map(str, shape)) for shape in shapes)


def _text(trace: list[Any] | Mapping[str, Any]) -> str:
    return json.dumps(trace, separators=(",", ":"))
