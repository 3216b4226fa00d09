"""From a trained model to a folder of C that needs no runtime."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tvm_doping import __version__
from tvm_doping.build import lower
from tvm_doping.errors import InvalidInput
from tvm_doping.freestanding.calls import program
from tvm_doping.freestanding.folder import CProgram, c_program
from tvm_doping.freestanding.kernels import compile_kernels
from tvm_doping.freestanding.layout import layout, packed
from tvm_doping.freestanding.objects import loaded_bytes
from tvm_doping.freestanding.report import Report, Sizes
from tvm_doping.freestanding.source import Source
from tvm_doping.freestanding.spelling import check_prefix
from tvm_doping.manifest import TargetSpec, TensorSpec
from tvm_doping.reading import Factory, Model
from tvm_doping.sparsity.values import Precision
from tvm_doping.targets import Target, resolve

# Steps that run at once: two tiles of the widest vectors. More need more RAM, and are hardly faster.
MAX_STEPS = 32
# Of the golden run: more than one, and not whole tiles.
_GOLDEN_STEPS = 9


def compile_c(
    model: Model,
    target: str | Target = "auto",
    *,
    prefix: str | None = None,
    max_steps: int = MAX_STEPS,
    weights: Literal["object", "file"] = "object",
    factory: Factory | None = None,
    example: Any = None,
    batch: int = 1,
    steps: int = 1,
    head: str | None = None,
    dump: str | os.PathLike[str] | None = None,
    precision: Precision = "exact",
    force: Mapping[str, Any] | None = None,
    records: str | os.PathLike[str] | None = "auto",
    tolerance: float = 1e-5,
) -> CProgram:
    """Compile a trained model into C: `compile_c(model, "cortex-a72").save(folder)`, then `make -C folder check`.

    prefix     what the names of its functions begin with; by default that of the run folder or of the module's class;
    max_steps  time steps that it works on at once, which its memory is for; a model that is no stream takes no more in all;
    weights    "object": part of the program; "file": in weights.bin, which the program maps or reads;
    batch      streams side by side: exactly so many run.

    The other options, and the comparison with PyTorch, are those of `compile`. It runs on one thread; instances may run in many.
    Raises UnsupportedModel, which names the operator, for a model that needs TVM's runtime; else what `compile` raises.
    """
    if max_steps < 1 or max_steps > 2**20:
        raise InvalidInput("max_steps", "a number from 1 to 1048576", str(max_steps), "The default is 32.")
    if weights not in ("object", "file"):
        raise InvalidInput("weights", "object or file", repr(weights), "Choose one.")
    target = resolve(target)
    if target.gpu:
        raise InvalidInput(
            "target of C without a runtime",
            "a CPU",
            target.name,
            "Compile a bundle for it, without --runtime c.",
        )
    name = Path(model).resolve().name if isinstance(model, str | os.PathLike) else type(model).__name__
    prefix = check_prefix(prefix if prefix is not None else _prefix(name))
    compiled = lower(
        model,
        target,
        factory=factory,
        example=example,
        batch=batch,
        steps=steps,
        head=head,
        dump=dump,
        precision=precision,
        force=force,
        records=records,
        tolerance=tolerance,
        golden=lambda s: (_GOLDEN_STEPS if s.streaming else min(_GOLDEN_STEPS, max_steps), batch),
        library=False,
    )
    signature, machine = compiled.signature, compiled.target
    calls = program(compiled.module, signature, list(compiled.weights), batch=batch, steps=max_steps)
    kernels = compile_kernels(calls.kernels, f"{prefix}_kernel_", machine, max_steps)
    plan = layout(calls, kernels.workspace)
    source = Source(
        prefix=prefix,
        title=name,
        version=__version__,
        target=machine,
        signature=signature,
        program=calls,
        kernels=kernels,
        layout=plan,
        embedded=weights == "object",
        weights=packed(plan, compiled.weights),
    )
    return c_program(source, compiled.golden, _report(source, compiled))


def _prefix(name: str) -> str:
    words = (
        re.sub(r"\W+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name), flags=re.ASCII).strip("_").lower()
    )
    return (words if words[:1].isalpha() else f"model_{words}".rstrip("_"))[:40]


def _report(source: Source, compiled: Any) -> Report:
    signature, machine, plan = source.signature, source.target, source.layout

    def specs(group: Any) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=t.name, shape=t.shape, dtype=t.dtype, below=t.below) for t in group)

    return Report.model_validate(
        {
            "name": source.title,
            "prefix": source.prefix,
            "target": TargetSpec(name=machine.name, mcpu=machine.mcpu, features=machine.features),
            "triple": machine.triple,
            "inputs": specs(signature.inputs),
            "state": specs(signature.state),
            "outputs": specs(signature.outputs),
            "streaming": signature.streaming,
            "batch": source.program.batch,
            "steps": source.program.steps,
            "weights": "object" if source.embedded else "file",
            "sizes": Sizes(
                code=loaded_bytes(source.kernels.code),
                weights=plan.weight_bytes,
                memory=plan.memory,
                state=plan.state_bytes,
                frame=source.kernels.frame,
            ),
            "tolerance": compiled.tolerance,
            "golden_error": None if math.isnan(compiled.golden_error) else compiled.golden_error,
            "precision": compiled.precision,
            "precision_error": compiled.precision_error,
            "layers": compiled.layers,
            "versions": compiled.versions,
        }
    )
