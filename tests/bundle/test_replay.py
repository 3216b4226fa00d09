"""Steps without the virtual machine: the same numbers, and only where a step is nothing but kernels."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.bundle.conftest import OUT, WIDTH, compiled, executable, make_bundle
from tests.bundle.test_signatures import normal, session, spec
from tvm_doping.runtime import Session


def replayed(stream: Session) -> bool:
    """Whether the session's steps go without the VM."""
    assert stream._stream is not None and stream._stream.recorded
    return stream._stream.replay is not None


def test_steps_give_what_the_machine_gives_bit_by_bit(bundle, monkeypatch):
    quick, slow = bundle.session(), bundle.session()
    monkeypatch.setattr("tvm_doping.runtime.record", lambda *_arguments: None)
    slow.step(normal(3, WIDTH))
    monkeypatch.undo()
    quick.step(normal(3, WIDTH))
    assert replayed(quick) and not replayed(slow)
    for t in range(12):
        x = normal(3, WIDTH, seed=t)
        for stream in (quick, slow):
            if t == 4:
                stream.run(normal(5, 3, WIDTH))
            if t == 8:
                stream.state = [normal(3, OUT, seed=9)]
        np.testing.assert_array_equal(quick.step(x), slow.step(x))
        np.testing.assert_array_equal(quick.state["carry"], slow.state["carry"])


def test_a_reset_keeps_the_recording_of_the_same_batch_alone(bundle):
    stream = bundle.session()
    first = stream.step(normal(2, WIDTH))
    recording = stream._stream.replay
    stream.reset()
    np.testing.assert_array_equal(stream.step(normal(2, WIDTH)), first)
    assert stream._stream.replay is recording
    stream.reset()
    assert stream.step(normal(5, WIDTH)).shape == (5, OUT)
    assert replayed(stream) and stream._stream.replay is not recording


def test_results_that_share_memory_are_not_replayed():
    library = executable(lambda x, carry, y, new: [y, carry])
    stream = make_bundle(library).session()
    for _ in range(3):
        stream.step(normal(1, WIDTH))
    assert not replayed(stream)


def test_a_step_that_depends_on_values_is_not_replayed():
    import tvm

    from tvm_doping import targets

    text = """
@I.ir_module
class Module:
    @R.function
    def main(x: R.Tensor((1, 4), "float32"), weights: R.Tuple()) -> R.Tuple(R.Tensor((1, 4), "float32")):
        low = R.min(x)
        negative = R.less(low, R.const(0.0, "float32"))
        if negative:
            y = R.subtract(x, R.const(1.0, "float32"))
        else:
            y = R.add(x, R.const(1.0, "float32"))
        z = (y,)
        return z
"""
    built = tvm.compile(tvm.script.from_source(text), targets.resolve("x86-64-v2").tvm())
    with tempfile.TemporaryDirectory() as folder:
        built.export_library(f"{folder}/lib.so")
        library = Path(folder, "lib.so").read_bytes()
    model = session(
        library, {}, inputs=(spec("x", 1, 4),), state=(), outputs=(spec("y", 1, 4),), time_axis=None
    )
    for sign in (1, -1, 1):
        x = np.full((1, 4), sign, np.float32)
        np.testing.assert_array_equal(model.step(x), 2 * x)
    assert not replayed(model)


def test_a_step_that_is_not_the_same_twice_is_not_replayed():
    import tvm
    from tvm import relax

    calls: list[None] = []

    @tvm.register_global_func("tvm_doping.test.count", override=True)
    def count(_x, out):
        calls.append(None)
        np.from_dlpack(out)[...] = len(calls)

    def body(emit, x, _weights):
        kind = relax.TensorType((1, 4), "float32")
        return [emit(relax.call_dps_packed("tvm_doping.test.count", [x], out_ty=kind))]

    library = compiled({"x": ((1, 4), "float32")}, [], body)
    model = session(
        library, {}, inputs=(spec("x", 1, 4),), state=(), outputs=(spec("y", 1, 4),), time_axis=None
    )
    model.step(normal(1, 4))
    assert not replayed(model)
    before = len(calls)
    assert model.step(normal(1, 4))[0, 0] == before + 1


@pytest.mark.parametrize("steps", [1, 50])
def test_outputs_of_a_replay_are_the_callers(bundle, steps):
    stream = bundle.session()
    seen = [stream.step(normal(1, WIDTH)) for _ in range(steps)]
    kept = [array.copy() for array in seen]
    stream.step(normal(1, WIDTH, seed=1))
    for array, copy in zip(seen, kept, strict=True):
        np.testing.assert_array_equal(array, copy)
        array[...] = 0
