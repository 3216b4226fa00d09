"""The candidates for a layer: every combination of what can be decided about its kernel and its packing.

A candidate is a list of decisions, one an axis, each a number below the axis's extent: what MetaSchedule samples. Packing is
part of it: the ways of a product differ in how its S is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvm_doping.records import Choice, Numbers, Way
from tvm_doping.records.model import DENSE
from tvm_doping.schedules import arm, fallback, x86
from tvm_doping.schedules.layer import Candidate, Layer
from tvm_doping.schedules.rates import CORES
from tvm_doping.schedules.recorded import choice_of, full_params
from tvm_doping.sparsity import FORMATS
from tvm_doping.sparsity.values import VALUE_BYTES
from tvm_doping.targets import Target
from tvm_doping.tuning.tasks import Task

# What may be varied about the packing of a format, beside what the schedules propose.
_PARAMS: dict[str, tuple[dict[str, int], ...]] = {
    "csr": tuple({"multiple": m} for m in (1, 2, 4, 8)),
    "sell16": tuple({"window": w} for w in (0, 64, 256)),
    "perm8": tuple({"multiple": m, "grouped": g} for m in (2, 4) for g in (0, 1)),
    "perm32": tuple({"multiple": m, "grouped": g} for m in (1, 2, 4) for g in (0, 1)),
    "perm32_expand": tuple({"multiple": m, "grouped": g} for m in (1, 2, 4) for g in (0, 1)),
    "perm2x32": tuple({"multiple": m, "grouped": g} for m in (1, 2, 4) for g in (0, 1)),
    "perm64": tuple({"multiple": m, "grouped": g} for m in (1, 2, 4) for g in (0, 1)),
}
# Vectors of a tile of streams (0: one by one), and of steps that are projected ahead (0: each step projects its own input). Five
# vectors of eight lanes hold a sequence of 35 steps.
_TILES, _STEPS = (0, 1, 2, 3, 4), (0, 1, 2, 3, 5, 8)
# Ranges of columns that S is stored in, where a tile of all of them would fill the L1.
_STRIPES = (1, 2, 4)
_WIDER = {2: 1.55, 3: 2.1, 4: 2.7}  # what a tile of more vectors takes, times one of one (about)
# Parts of the vector registers that a register tile may take: with fewer, LLVM keeps more of what is around the tile in registers.
_REGISTERS = (1.0, 0.75, 0.5)
_NAMES = (None, DENSE, *FORMATS)


@dataclass(frozen=True, kw_only=True)
class Space:
    """The axes of a task, by name; the options of each."""

    task: Task
    axes: dict[str, tuple[Any, ...]]
    ways: dict[str, dict[tuple[str, int], Candidate]] = field(repr=False)

    @property
    def size(self) -> int:
        """Combinations."""
        return math.prod(map(len, self.axes.values()))

    def choice(self, decisions: Sequence[int]) -> Choice:
        """The schedule that decisions stand for; several stand for one, where a format needs the target's whole vectors."""
        values = {name: axis[at] for (name, axis), at in zip(self.axes.items(), decisions, strict=True)}
        products = tuple(self.ways)
        lanes = values["lanes"]
        if any((_id(values[f"{p}.way"]), lanes) not in self.ways[p] for p in products):
            lanes = max(self.axes["lanes"])
        ways = {p: values[f"{p}.way"] for p in products}
        predicted = {p: self.ways[p][_id(way), lanes] for p, way in ways.items()}
        ways = {p: self._way(p, way, values) for p, way in ways.items()}
        registers = int(self.task.plan.config.registers * values["registers"])
        tile, steps = lanes * values["tile"], lanes * values["steps"]

        def worth(least: Sequence[int], vectors: int, of: int = 1) -> int:
            """The remainder that pays a padded tile, of what pays one of so many vectors: the same part of it."""
            return min(max(2, -(-max(least) * vectors // of)), lanes * vectors)

        configs = {p: predicted[p].config for p in products}
        first = configs[products[0]]
        return Choice(
            ways=ways,
            numbers=Numbers(
                lanes=lanes,
                registers=registers,
                tile=tile,
                tile_from=worth([c.tile_from for c in configs.values()], values["tile"]) if tile else 0,
                steps=steps,
                steps_from=worth([first.steps_from], values["steps"], first.steps // first.lanes or 1)
                if steps
                else 0,
                shared=values["shared"],
            ),
        )

    def decisions(self, choice: Choice) -> list[int] | None:
        """Those that stand for a choice (but for when a padded tile pays), or None where the space does not hold it."""
        numbers = choice.numbers
        wanted: dict[str, Any] = {
            "lanes": numbers.lanes,
            "tile": numbers.tile // numbers.lanes,
            "steps": numbers.steps // numbers.lanes,
            "registers": numbers.registers / self.task.plan.config.registers,
            "shared": numbers.shared,
        }
        for name, way in choice.ways.items():
            wanted[f"{name}.way"] = way.model_copy(update={"order": "left", "stripes": 1})
            wanted[f"{name}.order"] = way.order
            wanted[f"{name}.stripes"] = way.stripes
        try:
            return [axis.index(wanted[name]) for name, axis in self.axes.items()]
        except ValueError:
            return None

    @staticmethod
    def _way(product: str, way: Way, values: Mapping[str, Any]) -> Way:
        """The way with what else is decided about its product; a weight without an S of its own has no stripes."""
        whole = way.format in (None, DENSE)
        return way.model_copy(
            update={
                "order": values.get(f"{product}.order", way.order),
                "stripes": 1 if whole else values.get(f"{product}.stripes", way.stripes),
            }
        )

    def predicted(self, choice: Choice) -> float:
        """Cycles that the schedules expect of a step of all streams; they know nothing of stripes and registers."""
        numbers, total = choice.numbers, 0.0
        for name, way in choice.ways.items():
            of = self.ways[name][_id(way), numbers.lanes]
            one = of.cycles * self.task.batch
            tiles = -(-self.task.batch // max(1, numbers.tile))
            pairs = _WIDER.get(numbers.tile // numbers.lanes, 1.0)
            total += tiles * pairs * of.tile_cycles if numbers.tile and self.task.batch > 1 else one
        return max(total, 1.0)

    def features(self, choice: Choice) -> np.ndarray:
        """What the cost model sees of a candidate, (F,) float32: the predictions of the schedules, and all that is decided."""
        numbers = choice.numbers
        row: list[float] = [numbers.lanes, numbers.registers, numbers.tile, numbers.steps, numbers.shared]
        for name, way in choice.ways.items():
            predicted = self.ways[name][_id(way), numbers.lanes]
            row += [math.log2(1 + v) for v in (predicted.cycles, predicted.tile_cycles, predicted.bytes)]
            row += [float(way.format == known) for known in _NAMES]
            row += [way.params.get(key, -1) for key in ("multiple", "grouped", "window")]
            row += [VALUE_BYTES[way.values], bool(way.dot), way.order == "left", way.stripes]
        return np.array(row, "float32")


def space_of(task: Task, target: Target) -> Space:
    """All that can be decided for a task on a target."""
    axes: dict[str, tuple[Any, ...]] = {}
    ways: dict[str, dict[tuple[str, int], Candidate]] = {}
    for name, layer in task.layers.items():
        found = _ways(layer, target)
        ways[name] = {key: candidate for key, (_, candidate) in found.items()}
        axes[f"{name}.way"] = tuple({key[0]: way for key, (way, _) in found.items()}.values())
        if layer.part.kind == "kronecker":
            axes[f"{name}.order"] = ("left", "right")
        if layer.sparse.nnz and _tile_bytes(task, name, target) > target.l1 // 2:
            axes[f"{name}.stripes"] = _STRIPES
    config = task.plan.config
    lanes = sorted({width for candidates in ways.values() for _, width in candidates})
    axes["lanes"] = tuple(lanes)
    most = max(-(-task.batch // min(lanes)), config.tile // config.lanes)
    axes["tile"] = tuple(t for t in _TILES if t <= most) if task.batch > 1 else (config.tile // config.lanes,)
    several = task.operation == "lstm" and config.steps
    axes["steps"] = _STEPS if several else (config.steps // config.lanes,)
    axes["registers"] = _REGISTERS
    axes["shared"] = (False, True) if task.threads > 1 else (False,)
    return Space(task=task, axes=axes, ways=ways)


def _tile_bytes(task: Task, name: str, target: Target) -> int:
    """Bytes of the widest tile that a product reads: of streams, or for one stream of the steps that are projected ahead."""
    ahead = task.operation == "lstm" and name == "input" and task.batch == 1
    vectors = max(_STEPS) if ahead else -(-task.batch // target.lanes) if task.batch > 1 else 0
    return 4 * task.layers[name].columns * target.lanes * min(vectors, max(_TILES))


def start(space: Space) -> Choice:
    """What the cost model chose."""
    return choice_of(space.task.plan)


def _ways(layer: Layer, target: Target) -> dict[tuple[str, int], tuple[Way, Candidate]]:
    """(way, lanes) -> the way, and what the schedules predict of it (with their own packing)."""
    propose = x86.space if target.name.startswith("x86-64") else fallback.space
    propose = arm.space if target.name in CORES else propose
    found: dict[tuple[str, int], tuple[Way, Candidate]] = {}
    # of tiles of one vector, where there are several: what another tile is worth follows from its vectors
    for candidate in sorted(propose(layer, target), key=lambda c: -c.config.tile):
        dense = candidate.format == DENSE
        several = [candidate.params, *_PARAMS.get(candidate.format or "", ())]
        for params in [{}] if dense or candidate.format is None else several:
            whole = full_params(candidate.format, params)
            way = Way(format=candidate.format, params=whole, values=candidate.values, dot=candidate.dot)
            found[_id(way), candidate.config.lanes] = (way, candidate)
    return found


def _id(way: Way) -> str:
    return f"{way.format} {sorted(way.params.items())} {way.values} {way.dot}"
