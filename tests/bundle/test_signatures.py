"""Sessions over models of every signature: tokens, several inputs and outputs, time anywhere or nowhere."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bundle.conftest import compiled, make_bundle
from tvm_doping.bundle import Bundle
from tvm_doping.errors import SessionError
from tvm_doping.manifest import TensorSpec
from tvm_doping.runtime import Session


def spec(name, *shape, dtype="float32", below=None):
    return TensorSpec(name=name, shape=shape, dtype=dtype, below=below)


def session(library, weights, **changes) -> Session:
    base = make_bundle(library, weights=tuple(weights), **changes)
    return Bundle(manifest=base.manifest, library=library, weights=weights, golden={}).session()


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_tokens_are_looked_up_and_checked():
    from tvm import relax
    from tvm.relax import op

    def body(emit, tokens, weights):
        return [emit(op.take(emit(relax.TupleGetItem(weights, 0)), tokens, axis=0))]

    library = compiled({"tokens": (("T", "N"), "int64")}, [(11, 3)], body)
    table = normal(11, 3)
    stream = session(
        library,
        {"table": table},
        inputs=(spec("tokens", "T", "N", dtype="int64", below=11),),
        state=(),
        outputs=(spec("rows", "T", "N", 3),),
    )
    tokens = np.array([[3, 10], [0, 7]])
    np.testing.assert_array_equal(stream.run(tokens), table[tokens])
    np.testing.assert_array_equal(stream.step(tokens[0]), table[tokens[0]])
    assert stream.state == {}
    for bad in (-1, 11, 2**62, -(2**63)):
        with pytest.raises(SessionError, match=r"0\.\.10"):
            stream.step(np.array([3, bad]))
        with pytest.raises(SessionError, match=r"0\.\.10"):
            stream.run(np.array([[3, bad]]))
    with pytest.raises(SessionError, match="int64"):
        stream.step(np.array([3, 4], np.int32))


@pytest.fixture(scope="module")
def two_inputs() -> bytes:
    """u (T, N, 2), v (N, 2, T), carry (N, 2) -> u + v + carry (N, T, 2), u's mean over T, new carry."""
    from tvm.relax import op

    def body(emit, u, v, carry, _weights):
        total = emit(op.add(op.permute_dims(u, [1, 0, 2]), op.permute_dims(v, [0, 2, 1])))
        return [
            emit(op.add(total, op.expand_dims(carry, 1))),
            emit(op.mean(u, axis=[0])),
            emit(op.add(carry, op.sum(total, axis=[1]))),
        ]

    inputs = {
        "u": (("T", "N", 2), "float32"),
        "v": (("N", 2, "T"), "float32"),
        "carry": (("N", 2), "float32"),
    }
    return compiled(inputs, [], body)


def two(library):
    return session(
        library,
        {},
        inputs=(spec("u", "T", "N", 2), spec("v", "N", 2, "T")),
        state=(spec("carry", "N", 2),),
        outputs=(spec("total", "N", "T", 2), spec("mean", "N", 2)),
    )


def test_several_inputs_and_outputs(two_inputs):
    u, v = normal(4, 3, 2), normal(3, 2, 4, seed=1)
    whole = two(two_inputs)
    total, mean = whole.run(u, v)
    np.testing.assert_allclose(total, u.transpose(1, 0, 2) + v.transpose(0, 2, 1), atol=1e-6)
    np.testing.assert_allclose(mean, u.mean(0), atol=1e-6)
    stream = two(two_inputs)
    for t in range(4):
        carry = stream.state["carry"] if t else np.zeros((3, 2), np.float32)
        one, mean = stream.step(u[t], v[:, :, t])
        np.testing.assert_allclose(one, u[t] + v[:, :, t] + carry, atol=1e-5)
        np.testing.assert_allclose(mean, u[t], atol=1e-6)
    np.testing.assert_allclose(stream.state["carry"], whole.state["carry"], atol=1e-5)


def test_several_inputs_must_agree(two_inputs):
    stream = two(two_inputs)
    with pytest.raises(SessionError, match="'v'"):
        stream.run(normal(4, 3, 2), normal(3, 2, 5))
    with pytest.raises(SessionError, match="'v'"):
        stream.run(normal(4, 3, 2), normal(2, 2, 4))
    with pytest.raises(SessionError, match="2 inputs"):
        stream.run(normal(4, 3, 2))
    assert stream.batch is None  # nothing that was refused has fixed anything


def test_a_model_without_time_or_batch():
    from tvm import relax
    from tvm.relax import op

    def body(emit, x, weights):
        return [emit(op.matmul(x, emit(relax.TupleGetItem(weights, 0))))]

    matrix = normal(3, 2)
    model = session(
        compiled({"x": ((4, 3), "float32")}, [(3, 2)], body),
        {"W": matrix},
        inputs=(spec("x", 4, 3),),
        state=(),
        outputs=(spec("y", 4, 2),),
        time_axis=None,
    )
    x = normal(4, 3)
    for call in (model.step, model.run):
        np.testing.assert_allclose(call(x), x @ matrix, atol=1e-5)
    with pytest.raises(SessionError, match=r"\(4, 3\)"):
        model.run(normal(5, 3))
    assert model.batch is None
