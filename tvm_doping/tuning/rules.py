"""MetaSchedule's own rules for CPUs, and the search among the schedules that they make of dense loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tvm_doping._tvm import tirx, tvm
from tvm_doping.tuning.metaschedule import meta_schedule

_EACH = 8  # candidates a round: the model learns after each
_WARM = 16  # measured candidates before the model predicts
_MANY = 2**30
_FAILED = 1e3  # seconds that stand for a failure: the search keeps away from its like


class Rules:
    """Schedules of a workload (kernels.traced.workload) in rounds: ask, measure, tell; plain traces in place of candidates.

    The rules, postprocessors and mutators are those that MetaSchedule has for LLVM (tiles in two levels, caches for writes,
    reductions in parts, vectors, unrolling, inlining, where blocks are computed) but for threads: a session shares its layers'
    work itself. Its XGBoost model learns from its own features of loops.
    """

    def __init__(
        self,
        work: Any,
        target: Any,
        *,
        strategy: Literal["xgboost", "evolutionary", "random"] = "xgboost",
        seed: int = 0,
    ) -> None:
        self.ms = ms = meta_schedule()
        self.model = ms.cost_model.RandomModel(seed=seed)
        if strategy == "xgboost":
            self.model = ms.cost_model.XGBModel(
                extractor=ms.feature_extractor.PerStoreFeature(),
                num_warmup_samples=_WARM,
                num_tuning_cores=1,
            )
        search = ms.search_strategy.ReplayTrace()
        if strategy != "random":
            search = ms.search_strategy.EvolutionarySearch(
                population_size=128, init_min_unmeasured=16, genetic_num_iters=3, max_fail_count=10
            )
        self.context = ms.TuneContext(
            mod=work,
            target=target,
            space_generator=ms.space_generator.PostOrderApply(
                sch_rules=_rules(ms), postprocs=_postprocs(ms), mutator_probs=_mutators(ms)
            ),
            search_strategy=search,
            num_threads=1,
            rand_state=seed + 1,
        )
        self.database = ms.database.MemoryDatabase()
        self.workload = self.database.commit_workload(work)
        designs = self.context.generate_design_space()
        self.context.pre_tuning(_MANY, _EACH, designs, self.database, self.model)
        self.asked: list[Any] = []

    def ask(self) -> list[list[Any]]:
        """The traces of the next candidates, at most 8; none where the search finds no more."""
        self.asked = list(self.context.generate_measure_candidates() or [])
        return [plain(candidate.sch.trace.as_json()) for candidate in self.asked]

    def tell(self, seconds: Sequence[float]) -> None:
        """What the candidates of the last `ask` took; infinity for those that failed."""
        self.context.notify_runner_results(self.asked, self._learn(self.asked, seconds))

    def know(self, traces: Sequence[list[Any]], seconds: Sequence[float]) -> None:
        """Candidates that a job before has measured."""
        candidates = []
        for trace in traces:
            schedule = tvm.s_tir.Schedule(self.context.mod)
            tvm.s_tir.schedule.Trace.apply_json_to_schedule(trace, schedule)
            info = self.ms.arg_info.ArgInfo.from_entry_func(self.context.mod, False)
            candidates.append(self.ms.MeasureCandidate(schedule, info))
        self._learn(candidates, seconds)

    def _learn(self, candidates: Sequence[Any], seconds: Sequence[float]) -> list[Any]:
        ms = self.ms
        times = [float(s) if np.isfinite(s) else _FAILED for s in seconds]
        results = [ms.runner.RunnerResult([s], None) for s in times]
        for candidate, s in zip(candidates, times, strict=True):
            record = ms.database.TuningRecord(
                candidate.sch.trace, self.workload, [s], self.context.target, candidate.args_info
            )
            self.database.commit_tuning_record(record)
        if candidates:
            self.model.update(self.context, candidates, results)
        return results


def plain(value: Any) -> Any:
    """What TVM makes of a trace, as JSON has it."""
    if isinstance(value, tirx.IntImm):
        return int(value)
    if isinstance(value, tirx.FloatImm):
        return float(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return [plain(each) for each in value]


def _rules(ms: Any) -> list[Any]:
    rule = ms.schedule_rule
    return [
        rule.InlineConstantScalars(),
        rule.AutoInline(
            into_producer=False,
            into_consumer=True,
            inline_const_tensor=True,
            disallow_if_then_else=True,
            require_injective=True,
            require_ordered=True,
            disallow_op=["tirx.exp"],
        ),
        rule.AddRFactor(max_jobs_per_core=16, max_innermost_factor=64),
        rule.MultiLevelTiling(
            structure="SSRSRS",
            max_innermost_factor=64,
            reuse_write=rule.ReuseType(req="may", levels=[1, 2], scope="global"),
        ),
        rule.ParallelizeVectorizeUnroll(
            max_jobs_per_core=-1,
            max_vectorize_extent=64,
            unroll_max_steps=[0, 16, 64, 512],
            unroll_explicit=True,
        ),
        rule.RandomComputeLocation(),
    ]


def _postprocs(ms: Any) -> list[Any]:
    return [
        ms.postproc.DisallowDynamicLoop(),
        ms.postproc.RewriteParallelVectorizeUnroll(),
        ms.postproc.RewriteReductionBlock(),
    ]


def _mutators(ms: Any) -> dict[Any, float]:
    return {
        ms.mutator.MutateTileSize(): 0.9,
        ms.mutator.MutateComputeLocation(): 0.06,
        ms.mutator.MutateUnroll(): 0.04,
    }
