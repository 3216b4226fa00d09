"""What narrow values cost: the model with its weights as they are stored, against PyTorch's fp32."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm_ffi

from tvm_doping._tvm import relax, tensor, tvm
from tvm_doping.frontend import Signature
from tvm_doping.kernels.lowering import TIR_PIPELINE
from tvm_doping.passes.scores import add_scores
from tvm_doping.targets import Target, missing_features, resolve

Arrays = dict[str, np.ndarray]
_STEPS = 100  # of the run in which rounding may add up


class Rounded:
    """The module after `Pack`, its layers by NumPy on the packed arrays: exact arithmetic on rounded weights.

    It runs on any machine: what is not a layer is compiled for one that this CPU is, if not for the target itself.
    """

    def __init__(self, packed: Any, signature: Signature, target: Target) -> None:
        machine = resolve("auto") if target.gpu or missing_features(target.features) else target
        packed, self.scored = add_scores(packed)
        executable = tvm.compile(packed, machine.tvm(), tir_pipeline=TIR_PIPELINE)
        self.main = relax.VirtualMachine(executable, tvm.cpu())["main"]
        self.signature = signature

    def __call__(self, run: Arrays) -> Arrays:
        """The run with its outputs, new state and scores anew; names as golden values have them."""
        s = self.signature
        given = [run[f"input.{x.name}"] for x in s.inputs] + [run[f"state.{x.name}"] for x in s.state]
        names = [f"output.{x.name}" for x in s.outputs] + [f"new_state.{x.name}" for x in s.state]
        names += [f"scores.{s.outputs[i].name}" for i in self.scored]
        results = self.main(*map(tensor, given))
        results = results if isinstance(results, tvm_ffi.Array) else [results]
        return {**run, **{name: value.numpy() for name, value in zip(names, results, strict=True)}}


def measure(exact: list[Arrays], rounded: list[Arrays]) -> dict[str, dict[str, float]]:
    """For each output and new state, over all runs: the largest difference, and the norm of all relative to the exact ones.

    Of outputs that are indices: those of the scores that they were chosen by.
    """
    errors = {}
    for name in exact[0]:
        if not name.startswith(("output.", "new_state.")):
            continue
        scores = f"scores.{name.removeprefix('output.')}"
        of = scores if scores in exact[0] else name
        off = np.concatenate(
            [(b[of].astype("float64") - a[of]).ravel() for a, b in zip(exact, rounded, strict=True)]
        )
        norm = np.sqrt(sum(float(np.square(a[of].astype("float64")).sum()) for a in exact))
        errors[name] = {
            "max_abs": float(np.abs(off).max(initial=0.0)),
            "relative": float(np.linalg.norm(off) / norm) if norm else 0.0,
        }
    return errors


def long_inputs(signature: Signature, golden: Arrays, seed: int) -> Arrays | None:
    """Inputs of 100 random steps of the golden run's streams: tokens, or numbers distributed as the example's are.

    None for a model without time steps.
    """
    if signature.time_axis is None:
        return None
    random, arrays = np.random.default_rng(seed), {}
    for spec in signature.inputs:
        example = golden[f"input.{spec.name}"]
        shape = [_STEPS if d == "T" else n for d, n in zip(spec.shape, example.shape, strict=True)]
        if spec.below is not None:
            arrays[spec.name] = random.integers(0, spec.below, shape, dtype=example.dtype)
        else:
            arrays[spec.name] = random.choice(example.ravel(), shape).astype(example.dtype)
    return arrays | {spec.name: golden[f"state.{spec.name}"] for spec in signature.state}
