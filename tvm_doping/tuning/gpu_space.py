"""The candidates for a layer on a GPU: how each product runs, and the grid of blocks that they share.

The same to the search as `space.Space`. A combination whose products together break a limit of the target is refused when it is
built: the grids were weighed for each product alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvm_doping.records import Choice, GridNumbers, Numbers, Way
from tvm_doping.records.model import DENSE
from tvm_doping.schedules import cuda
from tvm_doping.schedules.grids import TILE_FROM
from tvm_doping.schedules.layer import Candidate
from tvm_doping.schedules.recorded import choice_of
from tvm_doping.sparsity.values import VALUE_BYTES
from tvm_doping.targets import Target
from tvm_doping.tuning.tasks import Task

_FORMATS = (None, DENSE, "sell32", "mma16")
_NEVER = 1e12  # cycles that are predicted of what the target's limits do not allow
_Key = tuple[
    str, str, int, int, int
]  # product, format and type, blocks, threads, streams from which 32 run side by side


@dataclass(frozen=True, kw_only=True)
class GpuSpace:
    """The axes of a task, by name; the options of each."""

    task: Task
    axes: dict[str, tuple[Any, ...]]
    candidates: dict[_Key, Candidate] = field(repr=False)

    @property
    def size(self) -> int:
        """Combinations."""
        return math.prod(map(len, self.axes.values()))

    def choice(self, decisions: Sequence[int]) -> Choice:
        """The schedule that decisions stand for."""
        values = {name: axis[at] for (name, axis), at in zip(self.axes.items(), decisions, strict=True)}
        grid = GridNumbers(**{name: values[name] for name in GridNumbers.model_fields})
        ways = {name: self._way(name, values) for name in self.task.layers}
        return Choice(ways=ways, numbers=Numbers(lanes=1, registers=0, grid=grid))

    def decisions(self, choice: Choice) -> list[int] | None:
        """Those that stand for a choice, or None where the space does not hold it."""
        if choice.numbers.grid is None:
            return None
        wanted: dict[str, Any] = choice.numbers.grid.model_dump()
        for name, way in choice.ways.items():
            wanted[f"{name}.way"] = way.model_copy(update={"order": "left"})
            wanted[f"{name}.order"] = way.order
        try:
            return [axis.index(wanted[name]) for name, axis in self.axes.items()]
        except ValueError:
            return None

    def predicted(self, choice: Choice) -> float:
        """Cycles that the schedules expect of a step of all streams; they know nothing of the order that was not chosen."""
        layers, found = self.task.layers, self._candidates(choice)
        each = (
            _NEVER if found[name] is None else cuda.predicted(found[name], layer)  # type: ignore[arg-type]
            for name, layer in layers.items()
        )
        return max(1.0, sum(each))

    def features(self, choice: Choice) -> np.ndarray:
        """What the cost model sees of a candidate, (F,) float32: the predictions of the schedules, and all that is decided."""
        grid = choice.numbers.grid
        assert grid is not None
        units = self.task.plan.hidden if self.task.operation == "lstm" else self.task.plan.outputs  # type: ignore[union-attr]
        row: list[float] = [grid.parts, grid.threads, grid.tile_from, -(-units // grid.parts)]
        for name, candidate in self._candidates(choice).items():
            way = choice.ways[name]
            numbers = (
                (_NEVER,) * 3
                if candidate is None
                else (candidate.cycles, candidate.tile_cycles, candidate.bytes)
            )
            row += [math.log2(1 + number) for number in numbers]
            row += [float(way.format == known) for known in _FORMATS]
            row += [VALUE_BYTES[way.values], way.order == "left"]
        return np.array(row, "float32")

    def _candidates(self, choice: Choice) -> dict[str, Candidate | None]:
        grid = choice.numbers.grid
        assert grid is not None
        numbers = (grid.parts, grid.threads, grid.tile_from)
        return {name: self.candidates.get((name, _id(way), *numbers)) for name, way in choice.ways.items()}

    @staticmethod
    def _way(product: str, values: Mapping[str, Any]) -> Way:
        way: Way = values[f"{product}.way"]
        order = "left" if way.format == DENSE else values.get(f"{product}.order", "left")
        return way.model_copy(update={"order": order})


def gpu_space_of(task: Task, target: Target) -> GpuSpace:
    """All that can be decided for a task on a GPU."""
    plan, grid = choice_of(task.plan), choice_of(task.plan).numbers.grid
    assert grid is not None
    units, gates = (task.plan.hidden, 4) if task.operation == "lstm" else (task.plan.outputs, 1)  # type: ignore[union-attr]
    axes: dict[str, tuple[Any, ...]] = {}
    candidates: dict[_Key, Candidate] = {}
    parts, threads = {grid.parts: None}, {grid.threads: None}
    for name, layer in task.layers.items():
        found = cuda.space(layer, target, units=units, gates=gates, resident=name == "recurrent")
        ways = [plan.ways[name].model_copy(update={"order": "left"})]
        for candidate in found:
            numbers = candidate.config.grid
            assert numbers is not None
            way = Way(format=candidate.format, values=candidate.values)
            candidates[name, _id(way), numbers.parts, numbers.threads, numbers.tile_from] = candidate
            ways.append(way)
            parts[numbers.parts] = threads[numbers.threads] = None
        axes[f"{name}.way"] = tuple({_id(way): way for way in ways}.values())
        if layer.part.kind == "kronecker":
            axes[f"{name}.order"] = ("left", "right")
    axes["parts"], axes["threads"] = tuple(parts), tuple(threads)
    # what counts is whether the task's streams run side by side: numbers that say the same are the same candidate
    sides = {number <= task.batch: number for number in (*reversed(TILE_FROM), grid.tile_from)}
    axes["tile_from"] = tuple(sides.values())
    return GpuSpace(task=task, axes=axes, candidates=candidates)


def _id(way: Way) -> str:
    return f"{way.format} {way.values}"
