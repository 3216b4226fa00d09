"""What is tuned: the layers of a model, those that are alike once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from tvm_doping import schedules
from tvm_doping._tvm import bindings, definitions, dps_call, text_of
from tvm_doping.frontend import Imported, import_model
from tvm_doping.kernels import LinearPlan, LstmPlan
from tvm_doping.models import load_model
from tvm_doping.models.checks import check_model
from tvm_doping.passes import Context, pipeline
from tvm_doping.passes.choose import Choose, weight
from tvm_doping.records import Key, distance
from tvm_doping.records.book import SAME
from tvm_doping.schedules.layer import Layer
from tvm_doping.schedules.recorded import key_of, operation_of
from tvm_doping.structures import Structure

# Operator -> the places of its weights and of its layer's name among the arguments.
_WEIGHTS: dict[str, tuple[tuple[int, ...], int]] = {"doping.lstm": ((3, 4), 8), "doping.linear": ((1,), 3)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Layers of a model that one record serves.

    plan     what the cost model chooses: where the search starts, and what it is compared with;
    weights  and layers: by the name of the product in the plan; threads: of a session.
    """

    names: tuple[str, ...]
    plan: LstmPlan | LinearPlan
    weights: dict[str, Structure]
    layers: dict[str, Layer] = field(repr=False)
    threads: int = 1

    @property
    def operation(self) -> str:
        """As records name it."""
        return operation_of(self.plan)

    @property
    def key(self) -> Key:
        """What its record is looked up by."""
        return key_of(self.layers, self.threads)

    @property
    def batch(self) -> int:
        """Streams to be fast for."""
        return next(iter(self.layers.values())).batch


def imported_of(model: Any, example: Any = None) -> Imported:
    """A run folder, an nn.Module or an ExportedProgram, as `compile` imports it."""
    if isinstance(model, str | os.PathLike):
        model = load_model(Path(model))
    if isinstance(model, nn.Module | ExportedProgram):
        check_model(model)
    return import_model(model, example)


def tasks_of(model: Any, context: Context, example: Any = None) -> list[Task]:
    """The LSTM and linear layers of a model (or of what `imported_of` made of it), as `compile` with that context sees them."""
    imported = model if isinstance(model, Imported) else imported_of(model, example)
    mod, context = imported.mod, replace(context, names=imported.names)
    for step in pipeline(context):
        if isinstance(step, Choose):
            break
        mod = step(mod)
    tasks: list[Task] = []
    for task in _layers(mod, context):
        at = next((at for at, other in enumerate(tasks) if _alike(other, task)), None)
        if at is None:
            tasks.append(task)
        else:
            tasks[at] = replace(tasks[at], names=tasks[at].names + task.names)
    return tasks


def _alike(one: Task, other: Task) -> bool:
    return one.operation == other.operation and distance(one.key, other.key) <= SAME


def _layers(mod: Any, context: Context) -> Iterator[Task]:
    values = definitions(mod["main"])
    for binding in bindings(mod["main"]):
        call = dps_call(getattr(binding, "value", None))
        if call is None or call[0] not in _WEIGHTS:
            continue
        places, name = _WEIGHTS[call[0]]
        structures = [weight(call[1][place], values) for place in places]
        options: dict[str, Any] = {
            "target": context.target,
            "batch": context.batch,
            "precision": context.precision,
            "threads": context.threads,
        }
        plan: LstmPlan | LinearPlan
        if call[0] == "doping.lstm":
            plan = schedules.choose_lstm(*structures, reverse=bool(int(call[1][7])), **options)
        else:
            plan = schedules.choose_linear(*structures, **options)
        layers = [schedules.layer_of(s, context.batch, context.precision) for s in structures]
        yield Task(
            names=(text_of(call[1][name]),),
            plan=plan,
            weights=dict(zip(plan.products, structures, strict=True)),
            layers=dict(zip(plan.products, layers, strict=True)),
            threads=context.threads,
        )
