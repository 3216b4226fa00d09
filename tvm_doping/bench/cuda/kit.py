"""A kit: what a machine with a GPU and no compiler needs to measure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tvm_doping.bench.cuda.cells import Cell, Model
from tvm_doping.places import write_files

BARRIER, FACTS = "barrier.so", "kit.json"


def prepare(
    out: Path, models: Sequence[Model], target: str, echo: Callable[[str], None] = lambda text: None
) -> None:
    """Compile the models, those of the checks and the barrier into `out`; those that are there are kept. Needs nvcc."""
    from tvm_doping.bench.cells import Variant
    from tvm_doping.bench.cuda import barrier, checks, weights
    from tvm_doping.bench.subject import outputs_alone
    from tvm_doping.bench.variants import doped
    from tvm_doping.build import compile
    from tvm_doping.targets import resolve

    (out / "layers").mkdir(parents=True, exist_ok=True)
    machine = resolve(target)
    barrier.build(out / BARRIER, machine)
    checks.prepare(out, machine, echo=echo)
    for model in models:
        folder = out / "bundles" / model.name
        if folder.is_dir():
            continue
        echo(f"{model.name}: compiling")
        lstm = doped(model.H, Variant(compression=model.compression, pattern="unstructured"))
        weights.save(out / "layers" / model.layers, lstm)
        bundle = compile(outputs_alone(lstm), target=machine, precision=model.precision)  # type: ignore[arg-type]
        bundle.save(folder)
    write_files(out, {FACTS: json.dumps({"target": target, "blocks": machine.multiprocessors})})


def models_of(kit: Path, cell: Cell, models: Sequence[Model]) -> list[Model]:
    """Those of a cell's size that the kit has."""
    return [model for model in models if model.H == cell.H and (kit / "bundles" / model.name).is_dir()]
