"""The search: MetaSchedule's evolutionary search over sampled decisions, with its XGBoost model over features of our own.

What is scheduled is a function of one block that computes nothing. Its schedule samples a decision for each axis of the space and
annotates the block with it; MetaSchedule's traces, mutations, population, database and cost model work on these as on any
schedule. The kernel that the decisions stand for is emitted, packed and timed elsewhere (`worker`): no schedule primitive
can change a packing, MetaSchedule's own builder and runner know no packed arguments, and its features of loops see neither the
data-dependent extents of sparse rows nor what is stored.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tvm_doping._tvm import tensor, tvm

Strategy = Literal["xgboost", "evolutionary", "random"]
_EACH = 8  # candidates a round: the model learns after each
_WARM = 8  # measured candidates before the model predicts
_MANY = 2**30
_BLOCK, _ATTRIBUTE = "decisions", "doping.decision"


class Search:
    """Candidates of a space of `extents` decisions, in rounds: ask, measure, tell.

    features   of decisions, (F,) float32: what the cost model of strategy "xgboost" learns from. "evolutionary" has the same
               search without a model, "random" none.
    predicted  of decisions: the time that the schedules expect, in any unit: what "xgboost" goes by until it has learned;
               without, chance.
    """

    def __init__(
        self,
        extents: Sequence[int],
        features: Callable[[list[int]], np.ndarray],
        *,
        predicted: Callable[[list[int]], float] | None = None,
        strategy: Strategy = "xgboost",
        seed: int = 0,
    ) -> None:
        ms = meta_schedule()
        self.ms, self.extents = ms, list(extents)
        self.model = ms.cost_model.RandomModel(seed=seed)
        if strategy == "xgboost":
            chance = np.random.default_rng(seed)
            self.model = _model(features, predicted or (lambda decisions: 1.0 + chance.random()))
        search = ms.search_strategy.ReplayTrace()
        if strategy != "random":
            search = ms.search_strategy.EvolutionarySearch(
                population_size=128, init_min_unmeasured=32, genetic_num_iters=3, max_fail_count=10
            )
        function = _function()
        generator = ms.space_generator.ScheduleFn(
            self._sample,
            sch_rules=[],
            postprocs=[],
            mutator_probs={_mutator(np.random.default_rng(seed)): 1.0},
        )
        # one thread: the mutators and features are Python
        self.context = ms.TuneContext(
            mod=function,
            target=tvm.target.Target({"kind": "llvm", "num-cores": 1}),
            space_generator=generator,
            search_strategy=search,
            num_threads=1,
            rand_state=seed + 1,
        )
        self.database = ms.database.MemoryDatabase()
        self.workload = self.database.commit_workload(function)
        (self.design,) = self.context.generate_design_space()
        self.context.pre_tuning(_MANY, _EACH, [self.design], self.database, self.model)

    def ask(self) -> list[Any]:
        """The next candidates, at most 8, `decisions_of` each; none where the search finds no more."""
        return list(self.context.generate_measure_candidates() or [])

    def tell(self, candidates: list[Any], seconds: Sequence[float]) -> None:
        """What candidates of one `ask` took; infinity for those that failed."""
        results = self._learn(candidates, seconds)
        self.context.notify_runner_results(candidates, results)

    def know(self, decisions: Sequence[Sequence[int]], seconds: Sequence[float]) -> None:
        """Candidates that were measured without being asked for: the cost model's choice, those of a run before."""
        candidates = [self._candidate(each) for each in decisions]
        self._learn(candidates, seconds)

    def _learn(self, candidates: list[Any], seconds: Sequence[float]) -> list[Any]:
        ms = self.ms
        # a failure is a very slow candidate: the search then keeps away from its like
        times = [float(s) if np.isfinite(s) else 1e3 for s in seconds]
        results = [ms.runner.RunnerResult([s], None) for s in times]
        for candidate, s in zip(candidates, times, strict=True):
            self.database.commit_tuning_record(
                ms.database.TuningRecord(
                    candidate.sch.trace, self.workload, [s], self.context.target, candidate.args_info
                )
            )
        if candidates:
            self.model.update(self.context, candidates, results)
        return results

    def _sample(self, schedule: Any) -> Any:
        block = schedule.get_sblock(_BLOCK)
        for at, extent in enumerate(self.extents):
            drawn = schedule.sample_categorical(list(range(extent)), [1.0 / extent] * extent)
            schedule.annotate(block, f"{_ATTRIBUTE}.{at}", drawn)
        return schedule

    def _candidate(self, decisions: Sequence[int]) -> Any:
        trace = self.design.trace
        sampled = [i for i in trace.insts if i.kind.name == "SampleCategorical"]
        for inst, decision in zip(sampled, decisions, strict=True):
            trace = trace.with_decision(inst, int(decision), True)
        schedule = tvm.s_tir.Schedule(self.context.mod)
        trace.apply_to_schedule(schedule, remove_postproc=False)
        return self.ms.MeasureCandidate(
            schedule, self.ms.arg_info.ArgInfo.from_entry_func(self.context.mod, False)
        )


def decisions_of(candidate: Any) -> list[int]:
    """The decisions of a candidate, one an axis."""
    schedule = candidate.sch
    annotations = schedule.get(schedule.get_sblock(_BLOCK)).annotations
    return [int(annotations[f"{_ATTRIBUTE}.{at}"]) for at in range(len(annotations))]


def _function() -> Any:
    """A module of one function with one block to carry the decisions."""
    from tvm.script import tirx as script

    @script.prim_func(s_tir=True)
    def main(a: script.handle) -> None:  # type: ignore[no-untyped-def]
        A = script.match_buffer(a, (1,), "float32")
        with script.sblock("decisions"):
            A[0] = script.float32(0)

    return tvm.IRModule({"main": main.with_attr("global_symbol", "main")})


def _mutator(rng: np.random.Generator) -> Any:
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.mutator.mutator import PyMutator

    @derived_object
    class Redraw(PyMutator):  # type: ignore[misc]
        """One decision drawn anew. MetaSchedule's own mutators know tile sizes, unrolling and the like, not decisions at large."""

        def _initialize_with_tune_context(self, context: Any) -> None:
            pass

        def apply(self, trace: Any, _seed: Any = None) -> Any:
            sampled = [i for i in trace.insts if i.kind.name == "SampleCategorical" and len(i.attrs[0]) > 1]
            if not sampled:
                return None
            inst = sampled[rng.integers(len(sampled))]
            now, extent = int(trace.decisions[inst]), len(inst.attrs[0])
            other = (now + 1 + int(rng.integers(extent - 1))) % extent
            return trace.with_decision(inst, other, True)

        def clone(self) -> Any:
            return _mutator(
                rng
            )  # the same generator: a copy of it would draw the same again, round after round

    return Redraw()


def _model(features: Callable[[list[int]], np.ndarray], predicted: Callable[[list[int]], float]) -> Any:
    from tvm.ir.utils import derived_object

    ms = meta_schedule()
    learner = ms.cost_model.XGBModel(
        extractor=_extractor(features), num_warmup_samples=_WARM, num_tuning_cores=1
    )

    @derived_object
    class Model(ms.cost_model.PyCostModel):  # type: ignore[misc,name-defined]
        """MetaSchedule's XGBoost model, and before it has learned what is predicted, where it would draw by chance."""

        def __init__(self) -> None:
            self.measured = 0

        def load(self, path: str) -> None:
            learner.load(path)

        def save(self, path: str) -> None:
            learner.save(path)

        def update(self, context: Any, candidates: list[Any], results: list[Any]) -> None:
            self.measured += len(candidates)
            learner.update(context, candidates, results)

        def predict(self, context: Any, candidates: list[Any]) -> np.ndarray:
            if self.measured >= _WARM:
                return np.asarray(learner.predict(context, candidates))
            # scores: the larger the better, and above 0
            return np.array([1.0 / predicted(decisions_of(candidate)) for candidate in candidates], "float64")

    return Model()


def _extractor(features: Callable[[list[int]], np.ndarray]) -> Any:
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.feature_extractor import PyFeatureExtractor

    @derived_object
    class Features(PyFeatureExtractor):  # type: ignore[misc]
        """A row a candidate, where MetaSchedule's own have one a store of the kernel."""

        def extract_from(self, context: Any, candidates: list[Any]) -> list[Any]:
            return [tensor(features(decisions_of(candidate))[None]) for candidate in candidates]

    return Features()


def meta_schedule() -> Any:
    """tvm.s_tir.meta_schedule. TuneContext imports all of tensor_intrin, whose parts for GPUs take 29 s to parse: an empty package
    in its place has the part that the search's defaults ask for, x86's, alone."""
    name = "tvm.s_tir.tensor_intrin"
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(Path(tvm.s_tir.__file__).parent / "tensor_intrin")]
        sys.modules[name] = package
        tvm.s_tir.tensor_intrin = package
        importlib.import_module(f"{name}.x86")
    return importlib.import_module("tvm.s_tir.meta_schedule")
