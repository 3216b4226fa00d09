"""The trials of one task: candidates asked for, measured beside the cost model's choice, logged, and the best told."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from tvm_doping import __version__
from tvm_doping.errors import TuningError
from tvm_doping.records import Choice
from tvm_doping.records.model import geometric_mean
from tvm_doping.schedules.recorded import apply, choice_of
from tvm_doping.structures import Structure
from tvm_doping.targets import Target
from tvm_doping.tuning import worker
from tvm_doping.tuning.gpu_space import GpuSpace
from tvm_doping.tuning.log import Log
from tvm_doping.tuning.measure import Job, typical
from tvm_doping.tuning.metaschedule import Search, decisions_of
from tvm_doping.tuning.space import Space
from tvm_doping.tuning.workers import Workers

_Candidate = TypeVar("_Candidate")
Strategy = Literal["xgboost", "evolutionary", "random", "exhaustive"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
FINALISTS, FINAL_ROUNDS = 6, 60
GAIN = 0.98  # of the time of the cost model's choice: what is not faster than this is not told from it
_DRAWS = 300
_SAID = 50  # candidates compiled, between lines that say so


@dataclass(frozen=True, kw_only=True)
class Budget:
    """trials: candidates to measure, those of a job before counted; end: of time.monotonic(), when no more are begun."""

    trials: int
    end: float = math.inf

    def left(self, done: int, fresh: int, spent: float) -> float:
        """Seconds until it is spent, with `done` candidates measured, `fresh` of them in the `spent` seconds of this job."""
        return max(0.0, min((self.trials - done) * spent / max(1, fresh), self.end - time.monotonic()))


@dataclass(frozen=True, kw_only=True)
class Best:
    """The fastest schedule, its times beside those of the cost model's choice, by T, and how many candidates were measured."""

    choice: Choice
    us: dict[int, float]
    reference_us: dict[int, float]
    trials: int

    @classmethod
    def from_line(cls, line: Mapping[str, Any], trials: int) -> Best:
        """Of the line that the log has of a final measurement."""
        return cls(
            choice=Choice.model_validate(line["best"]),
            us={int(T): us for T, us in line["us"].items()},
            reference_us={int(T): us for T, us in line["reference_us"].items()},
            trials=trials,
        )


class Trials:
    """The search of one task."""

    def __init__(
        self,
        space: Space | GpuSpace,
        target: Target,
        workers: Workers,
        log: Log,
        job: Job,
        *,
        timeout: float,
        echo: Callable[[str], None],
    ) -> None:
        self.space, self.target, self.workers, self.log = space, target, workers, log
        self.timeout, self.echo = timeout, echo
        self.task, self.started = space.task, time.monotonic()
        self.name = self.task.names[0]
        key = f"{self.task.key.model_dump_json()} {_digest(self.task.weights)}"
        self.id, place = place_of(log, key, target, job)
        self.weights, self.job = place / "weights.npz", replace(job, kept=str(place))
        worker.save_weights(self.weights, self.task.weights)
        self.first = choice_of(space.task.plan)
        self.scores: dict[
            str, float
        ] = {}  # a choice as JSON -> its time over that of the cost model's choice
        self.decisions: list[
            tuple[list[int], float]
        ] = []  # of each candidate measured, where the space holds it
        self.before = 0
        self.undisturbed: dict[int, float] = {}  # the least times of the cost model's choice, by T

    def run(self, budget: Budget, strategy: Strategy = "xgboost", seed: int = 0) -> Best:
        """Search until the budget is spent or the space exhausted, then measure the best few once more, in turns.

        TuningError where the cost model's own choice cannot be measured.
        """
        lines = self.log.of(self.id)
        for line in (line for line in lines if "choice" in line):
            self._know(Choice.model_validate(line["choice"]), _score(line))
        self.before = len(self.scores)
        if self.scores.get(self.first.model_dump_json(), math.inf) == math.inf:
            for line in self._measure([self.first]):
                if "error" in line:
                    raise TuningError(
                        f"the schedule of {self.name}",
                        "one that runs",
                        line["error"],
                        "Report this, with the log.",
                    )
        for choices in self._rounds(budget, strategy, seed):
            list(self._measure(choices))
            self.echo(self._progress(budget))
        return self._final()

    def build(self) -> None:
        """Compile and check all candidates of the space, once; `run` then has only to time them."""
        mark = self.weights.with_name("compiled")
        if mark.exists():
            return
        every = [self.first, *self._exhaust()]
        requests: dict[Any, dict[str, Any]] = {
            at: self._request([choice], rounds=0) for at, choice in enumerate(every)
        }
        for done, _ in enumerate(self.workers.run(requests), 1):
            if not done % _SAID:
                self.echo(f"{self.name}: {done} of {len(requests)} candidates compiled")
        mark.touch()

    def _rounds(self, budget: Budget, strategy: Strategy, seed: int) -> Iterator[list[Choice]]:
        """Choices to measure, some at a time; none that were measured before."""
        # time may end before the list does, whose neighbours are alike
        few = budget.end == math.inf and self.space.size <= budget.trials
        room = self._exhaust() if strategy == "exhaustive" or few else None
        search = None
        if room is None and strategy != "exhaustive":
            search = Search(
                [len(axis) for axis in self.space.axes.values()],
                lambda decisions: self.space.features(self.space.choice(decisions)),
                predicted=lambda decisions: self.space.predicted(self.space.choice(decisions)),
                strategy=strategy,
                seed=seed,
            )
            search.know([d for d, _ in self.decisions], [1e-6 * score for _, score in self.decisions])
        rng = np.random.default_rng(seed)
        while len(self.scores) < budget.trials and time.monotonic() < budget.end:
            some = budget.trials - len(self.scores)
            if search is None:
                assert room is not None
                choices = list(itertools.islice(room, min(some, 8)))
                if not choices:
                    return
                yield choices
                continue
            asked = search.ask()
            choices = _distinct([self.space.choice(decisions_of(c)) for c in asked], self.scores)[:some]
            # A search that has nothing new any more is given what chance draws, until that has nothing new either.
            drawn = [] if choices else self._drawn(rng)[:some]
            if not choices and not drawn:
                return
            yield choices or drawn
            decisions = [self.space.decisions(choice) for choice in drawn]
            found = [d for d in decisions if d is not None]
            search.know(found, [self._seconds(self.space.choice(d)) for d in found])
            wanted = [self.space.choice(decisions_of(candidate)) for candidate in asked]
            if asked and all(choice.model_dump_json() in self.scores for choice in wanted):
                search.tell(asked, [self._seconds(choice) for choice in wanted])

    def _exhaust(self) -> Iterator[Choice]:
        for decisions in itertools.product(*(range(len(axis)) for axis in self.space.axes.values())):
            yield from _distinct([self.space.choice(decisions)], self.scores)

    def _drawn(self, rng: np.random.Generator) -> list[Choice]:
        extents = [len(axis) for axis in self.space.axes.values()]
        return _distinct(
            [self.space.choice([int(rng.integers(n)) for n in extents]) for _ in range(_DRAWS)], self.scores
        )[:8]

    def _measure(self, choices: Sequence[Choice]) -> Iterator[dict[str, Any]]:
        """Measure each beside the cost model's choice; the lines that were logged."""
        requests: dict[Any, dict[str, Any]] = {
            at: self._request([self.first, choice]) for at, choice in enumerate(choices)
        }
        for at, reply in self.workers.run(requests):
            choice = choices[int(str(at))]
            line: dict[str, Any] = {"task": self.id, "layer": self.name, "trial": len(self.scores)}
            line |= {
                "choice": choice.model_dump(mode="json"),
                "seconds": reply["seconds"],
                "at": round(time.time(), 1),
            }
            if "us" in reply:
                reference, own = reply["us"]
                for T, us in _typical(reference).items():
                    self.undisturbed[T] = min(us, self.undisturbed.get(T, us))
                line |= {
                    "us": _typical(own),
                    "reference_us": _typical(reference),
                    "ratio": _ratios(own, reference),
                }
            else:
                line |= {"error": reply["error"], "kind": reply["kind"]}
            self.log.add(line)
            self._know(choice, _score(line))
            yield line

    def _final(self) -> Best:
        """The best few and the cost model's choice, in one measurement; the latter wins what cannot be told apart.

        It takes part twice: what its own two times differ by is how much a difference means nothing on a machine as busy as this.
        """
        ranked = sorted((score, text) for text, score in self.scores.items() if score < math.inf)
        best_few = [Choice.model_validate_json(text) for _, text in ranked[:FINALISTS]]

        def alone(choices: list[Choice]) -> list[Choice]:
            list(self._measure(choices))
            return [choice for choice in choices if self.scores[choice.model_dump_json()] < math.inf]

        finalists, reply = measured_last(
            [choice for choice in best_few if choice != self.first],
            lambda some: self._together([self.first, *some, self.first]),
            alone,
        )
        if "us" not in reply:
            raise TuningError(
                f"the predicted schedule of {self.name}",
                "to run once more",
                reply["error"],
                "Resume the job.",
            )
        choices = [self.first, *finalists, self.first]
        samples = reply["us"]
        *scores, again = [geometric_mean(_ratios(own, samples[0])) for own in samples]
        best = int(np.argmin(scores))
        best = best if scores[best] < GAIN - abs(1 - again) else 0
        found = Best(
            choice=choices[best],
            us=_typical(samples[best]),
            reference_us=_typical(samples[0]),
            trials=len(self.scores),
        )
        self.log.add(
            {
                "task": self.id,
                "layer": self.name,
                "best": found.choice.model_dump(mode="json"),
                "us": found.us,
                "reference_us": found.reference_us,
                "finalists": [[c.model_dump(mode="json"), s] for c, s in zip(choices, scores, strict=False)],
                "again": again,
                "wall": round(time.monotonic() - self.started, 1),
            }
        )
        return found

    def _together(self, choices: Sequence[Choice]) -> dict[str, Any]:
        request = self._request(choices, rounds=FINAL_ROUNDS)
        request["timeout"] *= len(choices)
        ((_, reply),) = list(self.workers.run({"final": request}))
        return reply

    def _request(self, choices: Sequence[Choice], rounds: int | None = None) -> dict[str, Any]:
        plan: Any = self.task.plan
        plans = [replace(apply(plan, self.task.layers, c), reason="", record="") for c in choices]
        return worker.request(
            plans,
            self.task.operation,
            self.weights,
            self.target,
            self.job,
            self.timeout,
            rounds,
            self.undisturbed,
        )

    def _know(self, choice: Choice, score: float) -> None:
        text = choice.model_dump_json()
        if text not in self.scores:
            decisions = self.space.decisions(choice)
            self.decisions += [] if decisions is None else [(decisions, score)]
        self.scores[text] = score

    def _seconds(self, choice: Choice) -> float:
        return 1e-6 * self.scores[choice.model_dump_json()]

    def _progress(self, budget: Budget) -> str:
        done, spent = len(self.scores), time.monotonic() - self.started
        left = budget.left(done, done - self.before, spent)
        candidates = f"{self.name}: {done} of {min(budget.trials, self.space.size)} candidates"
        return f"{candidates}{so_far(self.scores, 'the predicted choice')}, {left:.0f} s left"


def measured_last(
    finalists: list[_Candidate],
    together: Callable[[list[_Candidate]], dict[str, Any]],
    alone: Callable[[list[_Candidate]], list[_Candidate]],
) -> tuple[list[_Candidate], dict[str, Any]]:
    """What a measurement of the finalists, the best first, replies, and who took part in it.

    together  measures all of them; alone: each by itself, and returns those that ran.

    A candidate that ran before may crash or hang now. Where the measurement fails, who fails alone too is out, or the slower half
    if none does: the reply is an error only if nobody is left.
    """
    while "us" not in (reply := together(finalists)) and finalists:
        sound = alone(finalists)
        finalists = sound if len(sound) < len(finalists) else finalists[: len(finalists) // 2]
    return finalists, reply


def place_of(log: Log, key: str, target: Target, job: Job) -> tuple[str, Path]:
    """What the log calls the search of a task, by all that its measurements depend on, and a folder for it beside the log.

    A library there is taken for what it was compiled from: the sizes of the packed weights are part of its code, and so is what
    this version emits.
    """
    lent = job.device.rpartition(" ")[2]  # the key of the machines; where their tracker listens may change
    machine = f"{target.name} {target.mcpu} {target.mattr} {lent}"
    everything = f"{__version__} {machine} {job.steps} {job.batch} {key}"
    name = hashlib.sha256(everything.encode()).hexdigest()[:12]
    place = log.folder / f".{name}"
    place.mkdir(exist_ok=True)
    return name, place


def _digest(weights: Mapping[str, Structure]) -> str:
    digest = hashlib.sha256()
    for weight in weights.values():
        for name, array in weight.arrays().items():
            digest.update(
                f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes()
            )
    return digest.hexdigest()


def so_far(scores: Mapping[str, float], reference: str) -> str:
    """In words how many candidates failed, and the best beside the reference."""
    failed = sum(score == math.inf for score in scores.values())
    return f"{f', {failed} failed' if failed else ''}, best {1 / min(scores.values()):.2f}x {reference}"


def _typical(samples: Mapping[Any, Sequence[float]]) -> dict[int, float]:
    """`typical` of the samples, by T."""
    return {int(T): typical(us) for T, us in samples.items()}


def _ratios(own: Mapping[Any, Sequence[float]], reference: Mapping[Any, Sequence[float]]) -> dict[int, float]:
    """A candidate's time over that of the reference in the same rounds, by T."""
    a, b = _typical(own), _typical(reference)
    return {T: float(f"{a[T] / b[T]:.5g}") for T in a}


def _score(line: Mapping[str, Any]) -> float:
    return geometric_mean(line["ratio"]) if "ratio" in line else math.inf


def _distinct(choices: Sequence[Choice], known: Mapping[str, float]) -> list[Choice]:
    """Each once, without those that are known."""
    named = {choice.model_dump_json(): choice for choice in choices}
    return [choice for text, choice in named.items() if text not in known]
