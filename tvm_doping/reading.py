"""A trained model as all that targets have in common: imported, with its runs by PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from tvm_doping import checkpoint
from tvm_doping.errors import InvalidInput
from tvm_doping.frontend import Imported, Signature, headed, import_model
from tvm_doping.heads import Head
from tvm_doping.models import load_model
from tvm_doping.models.checks import check_model
from tvm_doping.models.doping import doped_weights, original
from tvm_doping.references import SEED, Arrays, reference_run, reference_runs
from tvm_doping.rounding import long_inputs

Model = nn.Module | ExportedProgram | str | os.PathLike[str]
Factory = Callable[..., nn.Module] | str


@dataclass(frozen=True, kw_only=True)
class ReadModel:
    """golden: the (T, N) of the golden run, None: those of the example; metrics: what the run folder reported; repeated: see
    `_repeated`."""

    imported: Imported
    golden: tuple[int, int] | None
    metrics: dict[str, Any]
    repeated: tuple[int, int]

    @cached_property
    def runs(self) -> list[Arrays]:
        """Runs by PyTorch, the golden one first."""
        return reference_runs(self.imported, self.golden)

    @cached_property
    def long_runs(self) -> list[Arrays]:
        """The runs, and a long one where the model has sequences: what rounding costs is measured on them."""
        inputs = long_inputs(self.imported.signature, self.runs[0], SEED)
        return self.runs if inputs is None else [*self.runs, reference_run(self.imported, inputs)]


def read_model(
    model: Model,
    *,
    factory: Factory | None,
    example: Any,
    head: str | None,
    tolerance: float,
    golden: Callable[[Signature], tuple[int, int]] | None = None,
) -> ReadModel:
    """Load (of a run folder), check and import a model; the arguments are those of `build.lower`."""
    wanted = None if head is None else Head.parse(head)
    metrics: dict[str, Any] = {}
    if isinstance(model, str | os.PathLike):
        metrics = dict(checkpoint.read_config(model).get("metrics") or {})
        model = load_model(model, factory)
    if isinstance(model, nn.Module | ExportedProgram):
        check_model(model)
    repeated = _repeated(model) if isinstance(model, nn.Module) else (0, 0)
    imported = _imported(model, example, wanted, tolerance)
    sizes = golden and golden(imported.signature)
    return ReadModel(imported=imported, golden=sizes, metrics=metrics, repeated=repeated)


def _imported(model: Any, example: Any, head: Head | None, tolerance: float) -> Imported:
    if head is not None and isinstance(model, ExportedProgram):
        raise InvalidInput(
            "head",
            "a model that it can be put into",
            "an ExportedProgram",
            "Pass the nn.Module, or apply the function in its forward before exporting it.",
        )
    with headed(model, head) if isinstance(model, nn.Module) else nullcontext():
        return import_model(model, example, tolerance=tolerance)


def _repeated(model: nn.Module) -> tuple[int, int]:
    """(dense entries, parameters) of doped weights that several layers share, for each layer beyond the first."""
    seen: set[nn.Module] = set()
    dense = parameters = 0
    for _, module, name, weight in doped_weights(model, shared=True):
        if weight in seen:
            dense += weight.mask.numel()
            parameters += weight.structure(original(module, name)).parameters
        seen.add(weight)
    return dense, parameters
