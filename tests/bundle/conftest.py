"""A tiny streaming model, y[t] = c + sum of (x[0..t] @ W + b), compiled by TVM itself and put into a bundle
once.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from tvm_doping import targets
from tvm_doping.bundle import Bundle
from tvm_doping.manifest import Manifest, TargetSpec, TensorSpec

WIDTH, OUT = 8, 5


def reference(weights, x, carry):
    """The model in NumPy: x (T, N, 8), carry (N, 5) -> y (T, N, 5), new carry."""
    y = np.cumsum(x @ weights["W"] + weights["b"], axis=0) + carry
    return y, y[-1]


def executable(outputs=None) -> bytes:
    """lib.so of the model above; `outputs(x, carry, y, new)` may choose other results."""
    from tvm import relax
    from tvm.relax import op

    def body(emit, x, carry, weights):
        w, b = (emit(relax.TupleGetItem(weights, i)) for i in range(2))
        z = emit(op.add(op.matmul(x, w), b))
        y = emit(op.add(op.cumsum(z, axis=0), carry))
        new = emit(op.add(op.sum(z, axis=[0]), carry))
        return [y, new] if outputs is None else outputs(x, carry, y, new)

    inputs = {"x": (("T", "N", WIDTH), "float32"), "carry": (("N", OUT), "float32")}
    return compiled(inputs, [(WIDTH, OUT), (OUT,)], body)


def compiled(inputs, weights, body) -> bytes:
    """lib.so of a `main`: name -> (shape, dtype), weights' shapes, `body(emit, *inputs, weights)`."""
    import tvm
    from tvm import relax, tirx

    symbols = {name: tirx.Var(name, "int64") for name in "TN"}

    def variable(name, shape, dtype):
        dims = [symbols.get(dim, dim) for dim in shape]
        return relax.Var(name, relax.TensorType(dims, dtype))

    given = [variable(name, *spec) for name, spec in inputs.items()]
    packed = relax.Var("weights", relax.TupleType([relax.TensorType(shape, "float32") for shape in weights]))
    builder = relax.BlockBuilder()
    with builder.function("main", [*given, packed]):
        with builder.dataflow():
            result = builder.emit_output(relax.Tuple(body(builder.emit, *given, packed)))
        builder.emit_func_output(result)
    built = tvm.compile(builder.get(), targets.resolve("x86-64-v2").tvm())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lib.so"
        built.export_library(str(path))
        return path.read_bytes()


def make_bundle(library: bytes, **changes) -> Bundle:
    rng = np.random.default_rng(7)
    weights = {
        "W": rng.standard_normal((WIDTH, OUT), np.float32),
        "b": rng.standard_normal(OUT, np.float32),
    }
    x = rng.standard_normal((4, 2, WIDTH), np.float32)
    start = rng.standard_normal((2, OUT), np.float32)
    y, carry = reference(weights, x, start)
    manifest = Manifest(
        name="tiny",
        target=TargetSpec(name="x86-64-v2", features=targets.TARGETS["x86-64-v2"].features),
        inputs=(TensorSpec(name="x", shape=("T", "N", WIDTH), dtype="float32"),),
        state=(TensorSpec(name="carry", shape=("N", OUT), dtype="float32"),),
        outputs=(TensorSpec(name="y", shape=("T", "N", OUT), dtype="float32"),),
        time_axis=0,
        tolerance=1e-5,
        golden_error=0.0,
        versions={"tvm": version("apache-tvm")},
        weights=("W", "b"),
    )
    return Bundle(
        manifest=manifest.model_copy(update=changes),
        library=library,
        weights=weights,
        golden={"input.x": x, "output.y": y, "state.carry": start, "new_state.carry": carry.copy()},
    )


@pytest.fixture(scope="session")
def library() -> bytes:
    return executable()


@pytest.fixture
def bundle(library) -> Bundle:
    return make_bundle(library)


@pytest.fixture
def saved(bundle, tmp_path) -> Path:
    return bundle.save(tmp_path / "tiny")
