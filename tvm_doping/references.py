"""The runs by PyTorch that compiled code is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tvm_doping.frontend import Imported, Signature

Arrays = dict[str, np.ndarray]

# (T, N) of the comparisons with PyTorch beside the example itself: one step and many of one stream, and enough
# streams to fill the widest tile and leave a remainder; each takes another way through the kernels.
_COMPARED = ((1, 1), (37, 1), (2, 19))
SEED = 0


def reference_runs(imported: Imported, golden: tuple[int, int] | None = None) -> list[Arrays]:
    """The golden run, of the (T, N) given or else of the example, then runs of other sizes."""
    first = reference_run(imported, _golden_inputs(imported))
    own = [] if golden is None else _more_runs(imported, first, (golden,))
    return [*own, first, *_more_runs(imported, first, _COMPARED)]


def reference_run(imported: Imported, arrays: Arrays) -> Arrays:
    """Inputs, state, outputs and new state of a run by PyTorch, and the scores of indices, named as golden values are."""
    outputs, state, scores = imported.reference.run(arrays)
    names = {
        **{spec.name: f"input.{spec.name}" for spec in imported.signature.inputs},
        **{spec.name: f"state.{spec.name}" for spec in imported.signature.state},
    }
    return {
        **{names[name]: np.ascontiguousarray(array) for name, array in arrays.items()},
        **{f"output.{name}": array for name, array in outputs.items()},
        **{f"new_state.{name}": array for name, array in state.items()},
        **{f"scores.{name}": array for name, array in scores.items()},
    }


def _golden_inputs(imported: Imported) -> Arrays:
    """The example, and a state that is not zero: a zero one would hide what is done with it."""
    random, arrays = np.random.default_rng(SEED), dict(imported.example)
    sizes = _sizes(imported.signature, arrays)
    for spec in imported.signature.state:
        if spec.name not in arrays:
            shape = [sizes.get(d, 1) if isinstance(d, str) else d for d in spec.shape]
            arrays[spec.name] = (0.5 * random.standard_normal(shape)).astype(spec.dtype)
    return arrays


def _more_runs(imported: Imported, golden: Arrays, wanted: Sequence[tuple[int, int]]) -> Iterator[Arrays]:
    """Runs of other sizes, made by repeating the example along its symbolic axes, or cutting it."""
    given = {
        spec.name: golden[f"{group}.{spec.name}"]
        for group, specs in (("input", imported.signature.inputs), ("state", imported.signature.state))
        for spec in specs
    }
    specs = {spec.name: spec for spec in (*imported.signature.inputs, *imported.signature.state)}
    for steps, streams in wanted:
        arrays = {}
        for name, array in given.items():
            for axis, symbol in enumerate(specs[name].shape):
                if symbol in ("T", "N"):
                    at = np.arange(steps if symbol == "T" else streams) % array.shape[axis]
                    array = np.take(array, at, axis=axis)
            arrays[name] = array
        yield reference_run(imported, arrays)


def _sizes(signature: Signature, arrays: Arrays) -> dict[str, int]:
    return {
        symbol: size
        for spec in signature.inputs
        for symbol, size in zip(spec.shape, arrays[spec.name].shape, strict=True)
        if isinstance(symbol, str)
    }
