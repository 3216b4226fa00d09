"""Records of loops that MetaSchedule's rules scheduled, as pydantic models: a workload, and the trace that was fastest for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tvm_doping.records.model import FORMAT_VERSION, Device, Strict, Timed

LOOPS: Literal["loops"] = "loops"
# The steps of MetaSchedule's rules for CPUs: what a trace may hold. Others could change what a function computes.
STEPS_OF_TRACES = frozenset(
    [
        "Annotate",
        "CacheRead",
        "CacheWrite",
        "ComputeAt",
        "ComputeInline",
        "DecomposeReduction",
        "EnterPostproc",
        "Fuse",
        "GetChildBlocks",
        "GetConsumers",
        "GetLoops",
        "GetProducers",
        "GetSBlock",
        "RFactor",
        "Reorder",
        "ReverseComputeAt",
        "ReverseComputeInline",
        "SampleCategorical",
        "SampleComputeLocation",
        "SamplePerfectTile",
        "Split",
        "Unannotate",
        "Unroll",
        "Vectorize",
    ]
)
_FIELDS = 4  # of a step: name, inputs, attributes, outputs


class Workload(Strict):
    """What a record of loops is looked up by: TVM's structural hash of the function for its shapes, and the TVM whose it is.

    Hashes, and what a trace's steps do, hold for one release of TVM: another takes no notice of the record.
    """

    hash: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    tvm: str


class LoopRecord(Timed):
    """The fastest schedule found for a function of dense loops; heuristic_us is then of the loops that `compile` makes itself.

    name    of the function, as `compile --dump` shows it; shapes: of its arguments, results last: both for people to read;
    trace   [steps, decisions], as MetaSchedule's database has them.
    """

    key: Workload
    name: str
    shapes: tuple[tuple[Annotated[int, Field(ge=1)], ...], ...]
    trace: tuple[list[Any], list[Any]]

    @model_validator(mode="after")
    def _a_trace(self) -> LoopRecord:
        steps, decisions = self.trace
        for at, step in enumerate(steps):
            if not isinstance(step, list) or len(step) != _FIELDS or not isinstance(step[0], str):
                raise ValueError(
                    f"a trace of steps [name, inputs, attributes, outputs], not {str(step)[:60]}"
                )
            if step[0] not in STEPS_OF_TRACES:
                raise ValueError(f"steps of MetaSchedule's rules for CPUs, not {step[0]!r}, step {at}")
        for decision in decisions:
            if not isinstance(decision, list) or len(decision) != 2 or decision[0] not in range(len(steps)):
                raise ValueError(f"decisions [step, value] of a trace's steps, not {str(decision)[:60]}")
        return self


class LoopFile(Strict):
    """<device>/loops.json: all records of loops on one machine."""

    format_version: Literal[2] = FORMAT_VERSION
    device: Device
    operation: Literal["loops"] = LOOPS
    records: tuple[LoopRecord, ...]

    @model_validator(mode="after")
    def _one_each(self) -> LoopFile:
        if len({record.key for record in self.records}) != len(self.records):
            raise ValueError("one record a workload")
        return self
