"""Sessions on the emulated GPU. Its streams do their work as late as they may: what waits for too little reads NaN."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import tvm
import tvm_ffi
from torch import nn

import tvm_doping
from tests.cuda.conftest import SMALL
from tests.cuda.emulation import Driver, to_gpu
from tvm_doping.bundle import Bundle
from tvm_doping.cuda.arrays import Blocks
from tvm_doping.cuda.library import Cuda, CudaError, cuda
from tvm_doping.errors import InvalidInput, SessionError
from tvm_doping.opening import open_session

INPUTS, HIDDEN = 6, 7
MANY = 9  # streams that go side by side: such a step has a workspace


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(INPUTS, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


@pytest.fixture(scope="module")
def bundle(with_gpu: Driver) -> Bundle:
    torch.manual_seed(0)
    return tvm_doping.compile(Layer().eval(), target=SMALL)


@pytest.fixture
def late(with_gpu: Driver) -> Iterator[Driver]:
    with_gpu.late("late")
    yield with_gpu
    with_gpu.late("at once")


def sequence(steps: int = 4, batch: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((steps, batch, INPUTS)).astype("float32")


def expected(bundle: Bundle, x: np.ndarray) -> np.ndarray:
    torch.manual_seed(0)
    with torch.no_grad():
        return Layer().eval()(torch.from_numpy(x)).numpy()


class Lent:
    """An array of another library's, which is ready at the end of its own stream."""

    def __init__(self, array: np.ndarray) -> None:
        self.stream, self.event = cuda().stream(), cuda().event()
        self.tensor = tvm.runtime.empty(array.shape, str(array.dtype), tvm.cuda(0))
        cuda().copy(self.tensor.data_ptr(), array.ctypes.data, array.nbytes, self.stream)
        self.asked: list[int] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, *, stream: int) -> Any:
        self.asked.append(stream)
        cuda().record(self.event, self.stream)
        cuda().wait(stream, self.event)
        return self.tensor.__dlpack__()


def read(y: Any) -> np.ndarray:
    """What another library sees that takes y on a stream of its own and waits for that alone."""
    stream = cuda().stream()
    tensor = tvm_ffi.from_dlpack(On(y, stream))
    array = np.empty(y.shape, y.dtype)
    cuda().copy(array.ctypes.data, tensor.data_ptr(), array.nbytes, stream)
    cuda().synchronize(stream)
    return array


class On:
    def __init__(self, array: Any, stream: int) -> None:
        self.array, self.stream = array, stream

    def __dlpack__(self) -> Any:
        return self.array.__dlpack__(stream=self.stream)


def raw(y: Any) -> np.ndarray:
    """What lies in its memory now, whoever is to write there."""
    address = y._tensor.data_ptr()
    return np.ctypeslib.as_array((ctypes.c_float * int(np.prod(y.shape))).from_address(address))


@contextmanager
def on(stream: int) -> Iterator[None]:
    with tvm_ffi.use_raw_stream(tvm_ffi.device("cuda:0"), stream):
        yield


@pytest.mark.parametrize("batch", [1, MANY])
def test_steps_and_runs_carry_the_state_on(bundle: Bundle, late: Driver, batch: int) -> None:
    x = sequence(5, batch)
    y = expected(bundle, x)
    with bundle.session(verify=True) as session:
        np.testing.assert_allclose(session.run(x), y, atol=1e-6)
        assert session.batch == batch and session.target == "cuda-sm90" and session.threads == 1
        state = session.state
        np.testing.assert_allclose(state["lstm.l0.h"], y[-1], atol=1e-6)
        session.reset()
        got = [session.step(x[0]), *session.run(x[1:3]), session.step(x[3]), session.step(x[4])]
        np.testing.assert_allclose(np.stack(got), y, atol=1e-6)
        for name, array in session.state.items():
            np.testing.assert_allclose(array, state[name], atol=1e-6)
        session.reset()
        session.run(x[:3])
        before = session.state
        last = session.step(x[3])
        session.state = before
        np.testing.assert_array_equal(session.step(x[3]), last)


@pytest.mark.parametrize("graph", [True, False])
def test_arrays_on_the_gpu_go_in_and_out_by_dlpack_in_the_order_of_their_streams(
    bundle: Bundle, late: Driver, graph: bool
) -> None:
    x = sequence(5, seed=int(graph))  # memory that is used again holds other results
    y = expected(bundle, x)
    session = bundle.session(graph=graph)
    stream = cuda().stream()
    session.step(x[0])
    with on(stream):
        given = [Lent(x[i]) for i in (1, 2)]
        results = [session.step(each) for each in given]
        whole = Lent(x[3:])
        results.append(session.run(whole))
    assert [each.asked for each in [*given, whole]] == [[stream]] * 3
    assert all(result.__dlpack_device__() == (2, 0) for result in results)
    before = np.concatenate([raw(result).copy() for result in results])
    got = [read(results[0]), read(results[1]), *read(results[2])]
    assert not np.isclose(before, np.concatenate(got).ravel()).any(), "a call only launches"
    np.testing.assert_allclose(np.stack(got), y[1:], atol=1e-6)
    np.testing.assert_array_equal(results[1].numpy(), got[1])


def test_an_array_on_the_gpu_is_read_where_it_is(bundle: Bundle, late: Driver, monkeypatch: Any) -> None:
    session, x = bundle.session(), to_gpu(sequence(3))
    session.run(x)
    copies: list[int] = []
    copy = Cuda.copy

    def noted(self: Cuda, to: int, source: int, size: int, stream: int) -> None:
        copies.append(size)
        copy(self, to, source, size, stream)

    monkeypatch.setattr(Cuda, "copy", noted)
    y = session.run(x)
    assert copies == [4 * HIDDEN] * 2, "of the state alone"
    assert session.run(x)._tensor.data_ptr() != y._tensor.data_ptr()


def test_sessions_on_streams_and_threads_leave_each_other_alone(bundle: Bundle, late: Driver) -> None:
    late.late("in turns")
    x = [sequence(4, batch, seed) for seed, batch in enumerate((1, MANY, MANY, 2))]
    y = [expected(bundle, each) for each in x]
    sessions = [bundle.session(graph=bool(i % 2)) for i in range(4)]
    streams = [cuda().stream() for _ in sessions]
    given = [[(to_gpu(each[t]), to_gpu(each[t + 1 : t + 2])) for t in range(3)] for each in x]

    def steps(i: int, t: int) -> list[Any]:
        with on(streams[i]):  # nothing in here may wait for the stream
            return [sessions[i].step(given[i][t][0]), sessions[i].run(given[i][t][1])]

    got: list[list[Any]] = [[] for _ in sessions]
    for t in (0, 2):  # interleaved, nothing waited for
        for i in range(4):
            got[i] += steps(i, t)
    for i in reversed(range(4)):
        np.testing.assert_allclose(
            np.stack([read(a).reshape(y[i][0].shape) for a in got[i]]), y[i], atol=1e-6
        )
    for session in sessions:
        session.reset()
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda i: [a for t in (0, 2) for a in steps(i, t)], range(4)))
    for i in range(4):
        np.testing.assert_allclose(
            np.stack([read(a).reshape(y[i][0].shape) for a in threaded[i]]), y[i], atol=1e-6
        )


def test_the_stream_is_the_one_that_the_arrays_library_works_on(
    bundle: Bundle, late: Driver, monkeypatch: Any
) -> None:
    stream = cuda().stream()
    current = SimpleNamespace(cuda=SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=stream)))
    monkeypatch.setitem(sys.modules, "cupy", current)
    monkeypatch.setattr(Lent, "__module__", "cupy")
    x = sequence(seed=5)
    given = Lent(x)
    y = bundle.session().run(given)
    assert given.asked == [stream]
    got = np.empty(y.shape, y.dtype)
    cuda().copy(got.ctypes.data, y._tensor.data_ptr(), got.nbytes, stream)
    np.testing.assert_allclose(got, expected(bundle, x), atol=1e-6)


def test_steps_are_captured_once_and_replayed(bundle: Bundle, late: Driver) -> None:
    session, x = bundle.session(), sequence(3, MANY)
    assert session.graph == "no step was taken yet"
    session.step(x[0])
    assert session.graph == "captured"
    late.log()
    session.step(x[1])
    session.step(to_gpu(x[2]))
    assert late.log() == ["graph", "graph"]
    session.reset()
    session.step(x[0])
    assert late.log() == ["graph"], "the same batch: what was captured holds"
    plain = bundle.session(graph=False)
    plain.step(x[0])
    assert "graph" not in late.log() and plain.graph == "load(graph=False)"


def test_a_step_that_cannot_be_captured_runs_all_the_same(
    bundle: Bundle, late: Driver, monkeypatch: Any
) -> None:
    def refuse(self: Cuda, stream: int) -> int:
        self.drop_capture(stream)
        raise CudaError("cudaStreamEndCapture", "a stream", "none", "")

    monkeypatch.setattr(Cuda, "end_capture", refuse)
    session, x = bundle.session(), sequence(3)
    got = np.stack([session.step(each) for each in x])
    np.testing.assert_allclose(got, expected(bundle, x), atol=1e-6)
    assert "cudaStreamEndCapture" in session.graph


def test_results_that_are_held_keep_their_memory(with_gpu: Driver) -> None:
    blocks = Blocks()
    held = blocks.take((3, 4), "float32")
    address = held.data_ptr()
    other = blocks.take((3, 4), "float32")
    assert other.data_ptr() != address
    lent = held.__dlpack__()
    del held
    assert blocks.take((12,), "float32").data_ptr() not in (address, other.data_ptr())
    del lent
    assert blocks.take((2, 6), "int32").data_ptr() == address


def test_one_copy_of_the_weights_while_there_is_a_session(bundle: Bundle, with_gpu: Driver) -> None:
    one, two = bundle.session(), bundle.session()
    assert one._weights is two._weights


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda x: to_gpu(x.astype("float64")), "float64"),
        (lambda x: to_gpu(x[:, :3]), r"\(1, 3\)"),
        (lambda x: torch.from_numpy(x), "device 0 of kind 1"),
        (lambda x: tvm_ffi.from_dlpack(to_gpu(x)).shape, "Shape|tuple"),
        (lambda x: Refusing(), "no grad, please.*detach"),
    ],
)
def test_an_array_that_does_not_fit_is_told(
    bundle: Bundle, with_gpu: Driver, make: Callable[[np.ndarray], Any], says: str
) -> None:
    session = bundle.session(graph=False)
    with pytest.raises(SessionError, match=says):
        session.step(make(sequence()[0]))
    session.step(sequence()[0])
    with pytest.raises(SessionError, match=says):
        session.step(make(sequence()[0]))


class Refusing:
    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, *, stream: int) -> Any:
        raise BufferError("no grad, please")


@pytest.mark.parametrize("options", [{"threads": 2}, {"pin": True}])
def test_what_a_gpu_has_not_is_refused(bundle: Bundle, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="has no threads on the CPU"):
        bundle.session(**options)


def test_a_graph_is_for_a_gpu(bundle: Bundle) -> None:
    target = bundle.manifest.target.model_copy(update={"name": "x86-64-v2", "features": ()})
    cpu = replace(bundle, manifest=bundle.manifest.model_copy(update={"target": target}))
    with pytest.raises(InvalidInput, match="a bundle for a GPU"):
        open_session(cpu, graph=True)


def test_a_closed_session_is_told(bundle: Bundle, with_gpu: Driver) -> None:
    session = bundle.session()
    session.step(sequence()[0])
    session.close()
    session.close()
    with pytest.raises(SessionError, match="closed"):
        session.step(sequence()[0])
    with pytest.raises(SessionError, match="closed"):
        session.run(sequence())


def test_a_gpu_with_too_few_multiprocessors_is_told(bundle: Bundle, with_gpu: Driver) -> None:
    with_gpu.library.emulator_multiprocessors(1)
    try:
        with pytest.raises(SessionError, match="a GPU of 132 multiprocessors or more"):
            bundle.session().run(sequence())
    finally:
        with_gpu.library.emulator_multiprocessors(132)
