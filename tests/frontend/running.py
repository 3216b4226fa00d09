"""Running a Relax module, wherever in the pipeline it is, and comparing it with PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import tvm_ffi

from tvm_doping._tvm import relax, tensor, tvm
from tvm_doping.frontend import Imported
from tvm_doping.kernels.lowering import TIR_PIPELINE
from tvm_doping.passes import Context
from tvm_doping.targets import resolve

Arrays = dict[str, np.ndarray]


class Program:
    """main of a module, called with arrays by the names of the signature."""

    def __init__(self, mod: Any, imported: Imported, context: Context | None = None) -> None:
        target = (context.target if context else resolve("x86-64-v2")).tvm()
        executable = tvm.compile(mod, target, tir_pipeline=TIR_PIPELINE)
        self.main = relax.VirtualMachine(executable, tvm.cpu())["main"]
        self.signature = imported.signature
        takes_weights = bool(mod["main"].params) and mod["main"].params[-1].name == "weights"
        self.weights = [tvm_ffi.Array(list(context.weights.values()))] if context and takes_weights else []

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        inputs = [arrays[spec.name] for spec in (*self.signature.inputs, *self.signature.state)]
        results = self.main(*map(tensor, inputs), *self.weights)
        names = [spec.name for spec in (*self.signature.outputs, *self.signature.state)]
        return {name: result.numpy() for name, result in zip(names, results, strict=True)}


def inputs(
    imported: Imported, steps: int, streams: int, *, seed: int = 0, zero_state: bool = False
) -> Arrays:
    """Random inputs and state of T = steps and N = streams."""
    random, arrays = np.random.default_rng(seed), {}
    sizes: dict[Any, Any] = {"T": steps, "N": streams, "T1": steps + 1}
    for spec in imported.signature.inputs:
        shape = [sizes.get(d, d) for d in spec.shape]
        if spec.below is not None:
            arrays[spec.name] = random.integers(0, spec.below, shape, dtype=spec.dtype)
        else:
            arrays[spec.name] = random.standard_normal(shape).astype(spec.dtype)
    for spec in imported.signature.state:
        shape = [sizes.get(d, d) for d in spec.shape]
        scale = 0.0 if zero_state else 0.5
        arrays[spec.name] = (scale * random.standard_normal(shape)).astype(spec.dtype)
    return arrays


def close(got: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], tolerance: float = 2e-6) -> None:
    """Assert that both have the same names, and the same values within the tolerance."""
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        assert got[name].shape == value.shape, name
        np.testing.assert_allclose(got[name], value, rtol=0, atol=tolerance, err_msg=name)


def check(
    imported: Imported, mod: Any = None, context: Context | None = None, sizes: Any = ((5, 2), (1, 1))
) -> None:
    """The module computes what PyTorch does, for several T and N."""
    program = Program(imported.mod if mod is None else mod, imported, context)
    for steps, streams in sizes:
        arrays = inputs(imported, steps, streams, seed=steps)
        outputs, state = imported.reference(arrays)
        close(program(arrays), {**outputs, **state})


def exported(
    model: torch.nn.Module, example: tuple[Any, ...], **options: Any
) -> torch.export.ExportedProgram:
    """What a user's own torch.export.export gives: aten.lstm whole, with PyTorch's warnings of its own doings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model.eval(), example, **options)
