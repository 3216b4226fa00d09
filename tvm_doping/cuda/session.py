"""The session on a GPU: the same methods as on a CPU; weights and state stay in its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np

from tvm_doping._runtime import allocate, as_one, current_stream, on_stream, view, weights_of
from tvm_doping.bundle import Bundle
from tvm_doping.cuda.arrays import (
    DEVICE,
    Blocks,
    GpuArray,
    arrived,
    is_aligned,
    overlap,
    put,
    stand_in,
    stream_of,
)
from tvm_doping.cuda.arrays import to_host as copied_to_host
from tvm_doping.cuda.graph import StepGraph
from tvm_doping.cuda.library import cuda
from tvm_doping.cuda.order import Order, machines
from tvm_doping.cuda.stream import CudaStream
from tvm_doping.errors import InvalidInput, SessionError
from tvm_doping.manifest import TensorSpec
from tvm_doping.opening import main_of, open_code
from tvm_doping.runtime import Arrays, Session
from tvm_doping.signature import check_range, mismatch
from tvm_doping.targets import TARGETS


class CudaSession(Session):
    """A stream with state on the first GPU.

    Inputs are NumPy arrays, or arrays in the GPU's memory of any library that has `__dlpack__`: they are read where they are, and
    the results are then GpuArrays, which torch and CuPy take without copies. Such calls only launch: they return before the GPU
    has worked, on the stream that the caller works on (`stream_of`). Results of NumPy arrays are NumPy arrays, waited for. Indices
    that lie on the GPU are not checked to be in range.

    Calls of one session wait for each other, on the GPU too, whatever streams they are made on.
    """

    _blocks: Any
    _shared: Any

    def __init__(self, bundle: Bundle, *, graph: bool = True, **options: Any) -> None:
        self._wants_graph = graph
        super().__init__(bundle, **options)

    @property
    def graph(self) -> str:
        """ "captured" where steps are replayed as a CUDA graph, else why not."""
        with self._lock:
            if not self._wants_graph:
                return "load(graph=False)"
            stream: Any = self._stream
            if stream is not None and stream.graph is not None:
                return "captured"
            return "no step was taken yet" if stream is None else stream.why_not or "no step was taken yet"

    def step(self, *inputs: Any) -> Arrays:
        """One time step: inputs and outputs without their time axis. Raises SessionError for a wrong shape or dtype."""
        with self._lock:
            on, given = self._arrived(inputs)
            stream: Any = self._stream
            if stream is None or not stream.slots:
                stream = self._begin_steps(given)
            self._check_step(stream, given)
            if stream.graph is None and self._wants_graph and not stream.why_not:
                self._capture(stream, given, on)
            advance = self._step_on_machine if stream.graph is None else self._replay
            outputs = advance(stream, given, on)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def run(self, *inputs: Any) -> Arrays:
        """T time steps at once: inputs and outputs with their time axis. Raises SessionError for a wrong shape or dtype."""
        with self._lock:
            if len(inputs) != len(self._manifest.inputs) or self._main is None:
                self._refuse_call(inputs)
            on, given = self._arrived(inputs)
            stream = self._fitting(self._bound(self._manifest.inputs, given))
            results = self._advance_on_machine(stream, given, on)
            shapes = [tuple(result.shape) for result in results]
            outputs = self._handed_out(
                results, shapes, on, to_host=_all_numpy(given), copy=bool(self._aliased)
            )
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def close(self) -> None:
        """Let go of the weights, the state and the code, once the GPU is done with them."""
        with self._lock:
            for stream in (self._stream, self._spare):
                if stream is not None:
                    self._wait()
                    stream.close()  # type: ignore[attr-defined]
            self._blocks = self._shared = None
        super().close()

    def _open(self, threads: int | None, pin: bool) -> None:
        if pin or threads not in (None, 1):
            raise InvalidInput(
                "pin" if pin else "threads",
                "a session on a CPU",
                f"{self._manifest.name!r} for {self._manifest.target.name}",
                "Leave it out: a GPU's session has no threads on the CPU.",
            )
        self._cuda = cuda()
        self._order = Order(self._cuda)
        self._blocks = Blocks()
        self._pool, self.threads = None, 1
        self._library = open_code(self.bundle)
        self._main = main_of(self._library, self.bundle, gpu=True)
        self._shared = _Weights.of(self.bundle)
        self._weights = self._shared.packed

    def _new_stream(self, symbols: Mapping[str, int]) -> Any:
        if self._spare is not None:
            self._wait()
            self._spare.close()  # type: ignore[attr-defined]
        return CudaStream(self._manifest, symbols, self._cuda, self._blocks, self._order)

    def _wait(self) -> None:
        on = current_stream()
        self._order.reach(on)
        self._cuda.synchronize(on)

    def _bound(self, specs: Sequence[Any], arrays: Sequence[Any]) -> dict[str, int]:
        try:
            return super()._bound(specs, [stand_in(array) for array in arrays])
        except SessionError as error:
            raise _of_any_library(error) from None

    def _arrived(self, inputs: Sequence[Any]) -> tuple[int, list[Any]]:
        """The stream to work on, and the inputs as NumPy arrays and tensors."""
        self._refuse_closed()
        on = stream_of(inputs)
        names = [spec.name for spec in self._manifest.inputs]
        names += ["input"] * (len(inputs) - len(names))
        return on, [arrived(name, array, on) for name, array in zip(names, inputs, strict=False)]

    def _check_step(self, stream: Any, given: Sequence[Any]) -> None:
        if len(given) != len(stream.slots):
            self._refuse_call(given)
        for slot, array in zip(stream.slots, given, strict=True):
            fits = isinstance(array, np.ndarray) or hasattr(array, "data_ptr")
            if not fits or tuple(array.shape) != slot.shape or array.dtype != slot.spec.dtype:
                raise _of_any_library(mismatch(slot.spec, slot.shape, stand_in(array)))
            if isinstance(array, np.ndarray):
                check_range(slot.spec, array)

    def _capture(self, stream: Any, given: Sequence[Any], on: int) -> None:
        """Make the stream's graph; where that fails, steps run on the virtual machine, which tells what is really wrong."""
        self._fill_slots(stream, given, on)
        tensors = [slot.buffer for slot in stream.slots]
        try:
            stream.graph = StepGraph(
                self._cuda, self._library, tensors, stream.state, self._weights, self._count, self._order
            )
            pairs = zip(self._manifest.outputs, stream.graph.outputs, strict=True)
            stream.graph.shapes = [self._without_time(*pair) for pair in pairs]
        except Exception as error:
            stream.why_not = str(error).strip()[:400] or type(error).__name__

    def _replay(self, stream: Any, given: Sequence[Any], on: int) -> list[Any]:
        """One step by the graph."""
        graph = stream.graph
        if not _all_numpy(given):
            with self._order.on(on):
                self._fill_slots(stream, given, on)
                graph.launch(on)
                made = [
                    self._copy(each, on, shape)
                    for each, shape in zip(graph.outputs, graph.shapes, strict=True)
                ]
            return [GpuArray(self._cuda, tensor, self._order) for tensor in made]
        for buffer, array in zip(graph.host_inputs, given, strict=True):
            buffer.reshape(array.shape)[...] = array
        with self._order.on(on):
            graph.launch_from_host(on)
        self._cuda.synchronize(on)
        return [a.reshape(shape).copy() for a, shape in zip(graph.host_outputs, graph.shapes, strict=True)]

    def _step_on_machine(self, stream: Any, given: Sequence[Any], on: int) -> list[Any]:
        """One step by the virtual machine."""
        self._fill_slots(stream, given, on)
        results = self._advance_on_machine(stream, [slot.buffer for slot in stream.slots], on)
        shapes = [self._without_time(*pair) for pair in zip(self._manifest.outputs, results, strict=True)]
        return self._handed_out(results, shapes, on, to_host=_all_numpy(given), copy=bool(self._aliased))

    def _fill_slots(self, stream: Any, given: Sequence[Any], on: int) -> None:
        with self._order.on(on):
            for slot, array in zip(stream.slots, given, strict=True):
                put(self._cuda, array, slot.buffer, on)

    def _advance_on_machine(self, stream: Any, given: Sequence[Any], on: int) -> list[Any]:
        """Call the model on the virtual machine, keep the new state, return the outputs where they are."""
        with machines().on(on), self._order.on(on), on_stream(on):
            tensors = [self._placed(array, on) for array in given]
            results = self._call(tensors, stream.state)
            outputs, state = results[: self._count], results[self._count :]
            if self._aliased is None:
                lent = [*tensors, *stream.state, *weights_of(self._weights)]
                self._aliased = any(overlap(a, b) for a in results for b in lent)
            for buffer, new in zip(stream.state, state, strict=True):
                if tuple(buffer.shape) != tuple(new.shape):
                    raise self._broken(f"a new state of shape {new.shape} after one of {buffer.shape}")
            if self._aliased:  # one state may be another, or an output the state before
                outputs, state = ([self._copy(tensor, on) for tensor in group] for group in (outputs, state))
            for buffer, new in zip(stream.state, state, strict=True):
                put(self._cuda, new, buffer, on)
        return outputs

    def _placed(self, array: Any, on: int) -> Any:
        """A tensor that kernels may read: the caller's own where it can be."""
        if not isinstance(array, np.ndarray) and is_aligned(array):
            return array
        return self._copy(array, on)

    def _copy(self, array: Any, on: int, shape: Sequence[int] | None = None) -> Any:
        tensor = self._blocks.take(array.shape if shape is None else shape, str(array.dtype))
        put(self._cuda, array, tensor, on)
        return tensor

    def _handed_out(
        self, results: Sequence[Any], shapes: Sequence[Sequence[int]], on: int, *, to_host: bool, copy: bool
    ) -> list[Any]:
        """Results as the caller gets them; copy: their memory is not the caller's to keep."""
        if to_host:
            arrays = copied_to_host(self._cuda, results, self._order, on)
            return [array.reshape(shape) for array, shape in zip(arrays, shapes, strict=True)]
        with self._order.on(on):
            make = (lambda r, s: self._copy(r, on, s)) if copy else (lambda r, s: view(r, s, str(r.dtype)))
            tensors = [make(result, shape) for result, shape in zip(results, shapes, strict=True)]
        return [GpuArray(self._cuda, tensor, self._order) for tensor in tensors]

    def _run_from(self, inputs: list[np.ndarray], state: list[np.ndarray]) -> list[np.ndarray]:
        on = current_stream()
        with machines().on(on), self._order.on(on), on_stream(on):
            given = [[self._copy(array, on) for array in arrays] for arrays in (inputs, state)]
            results = self._call(*given)
        return copied_to_host(self._cuda, results, self._order, on)

    @staticmethod
    def _without_time(spec: TensorSpec, tensor: Any) -> tuple[int, ...]:
        return tuple(size for dim, size in zip(spec.shape, tensor.shape, strict=True) if dim != "T")

    def _broken(self, got: object) -> SessionError:
        text = str(got).strip()
        if "CUDA" not in text:
            return super()._broken(got)
        target = TARGETS.get(self._manifest.target.name)
        wanted = f"a GPU of {target.multiprocessors} multiprocessors or more" if target else "such a GPU"
        return SessionError(
            f"bundle {self._manifest.name!r} on this GPU",
            f"{wanted}, none of which another program holds, and enough of its memory",
            text[-400:],
            "Run it on such a GPU, or compile the model for a CPU.",
        )


class _Weights:
    """A bundle's weights in the GPU's memory: one copy for all sessions of a bundle, while there is one."""

    _all: ClassVar[WeakValueDictionary[int, _Weights]] = WeakValueDictionary()

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle  # an object that lives keeps its id
        tensors = []
        for array in bundle.weights.values():
            tensor = allocate(array.shape, array.dtype.name, DEVICE)
            put(cuda(), array, tensor, 0)
            tensors.append(tensor)
        cuda().synchronize(0)
        self.packed = as_one(tensors)

    @classmethod
    def of(cls, bundle: Bundle) -> _Weights:
        """Those of a bundle."""
        found = cls._all.get(id(bundle))
        if found is None:
            found = cls._all[id(bundle)] = cls(bundle)
        return found


def _all_numpy(given: Sequence[Any]) -> bool:
    return all(isinstance(array, np.ndarray) for array in given)


def _of_any_library(error: SessionError) -> SessionError:
    """The error of an array that does not fit, in words for those of a GPU as well."""
    needs = error.needs.replace("a NumPy array", "an array of NumPy or on the GPU,")
    return SessionError(error.what, needs, error.got, error.remedy.replace("np.asarray(x, ", "x.astype("))
