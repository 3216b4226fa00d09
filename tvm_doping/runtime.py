"""The session: a stream with state over a bundle.

Needs NumPy and TVM's runtime library; imports neither torch nor TVM's compiler.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import repeat
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_doping._runtime import (
    as_numpy,
    from_dlpack,
    item,
    pack_weights,
    weights_of,
)
from tvm_doping._threads import check_threads, open_pool
from tvm_doping.arrays import aligned_copy, is_usable
from tvm_doping.bundle import Bundle
from tvm_doping.errors import BundleError, InvalidInput, SessionError
from tvm_doping.fitting import check_machine
from tvm_doping.golden import golden_error, golden_values
from tvm_doping.opening import main_of, open_code, open_session
from tvm_doping.replay import Replay, record
from tvm_doping.signature import bind, check_range, first_step, in_order, mismatch, timeless
from tvm_doping.stream import Stream

if TYPE_CHECKING:
    from tvm_doping.manifest import Manifest

Arrays = Any  # an array where the model has one output, else a tuple of arrays: which, its manifest says


def load(
    path: str | os.PathLike[str],
    *,
    target: str = "auto",
    batch: int | None = None,
    threads: int | None = None,
    pin: bool = False,
    graph: bool | None = None,
    verify: bool = False,
) -> Session:
    """Open a bundle as a stream: check all of it, then load its code.

    target: of a bundle for several targets, the one whose code to run; "auto" the best that this CPU can run. Session.target
    tells which it is.
    batch: how many streams run side by side (N); by default the first input decides.
    threads: how many run it at most, the calling one among them; by default as many as it was compiled for. Results are
    the same for every number; Session.threads is how many do: no more than there are cores.
    pin: hold each of the other threads to a core of its own.
    graph: on a GPU, whether steps are replayed as a CUDA graph, which they are by default.
    verify: also run the bundle's golden input and compare with its golden output.
    Raises BundleError for a bundle that is missing, damaged, edited, or made for another machine.
    """
    bundle = Bundle.load(path, target=target)
    return open_session(bundle, batch=batch, threads=threads, pin=pin, graph=graph, verify=verify)


class Session:
    """A stream with state. Inputs and outputs as the manifest orders them; several outputs are a tuple.

    `step(x)` takes one time step (no time axis), `run(xs)` takes T of them; both carry the state on, so that
    running a sequence in pieces equals running it at once. Where the manifest says that the model is no stream,
    `step` is refused, and `run` takes a whole sequence. Sessions are independent; calls of one session
    wait for each other.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        batch: int | None = None,
        threads: int | None = None,
        pin: bool = False,
        verify: bool = False,
    ) -> None:
        check_machine(bundle.manifest)
        if batch is not None and (not isinstance(batch, int) or isinstance(batch, bool) or batch < 1):
            raise InvalidInput(
                "batch",
                "a whole number of streams, at least 1",
                repr(batch),
                "Leave it out to follow the first input.",
            )
        self.bundle = bundle
        self._manifest: Manifest = bundle.manifest
        self._lock = Lock()
        self._open(threads, pin)
        self._given_batch = batch
        self._count = len(bundle.manifest.outputs)
        self._squeeze = [first_step(spec) for spec in bundle.manifest.outputs]
        self._aliased: bool | None = None  # not known before the first call
        self._stream: Stream | None = None  # its sizes are fixed, by load() or by the first input
        self._spare: Stream | None = None  # after reset(), for the next input of the same sizes
        self._clear()
        if verify:
            self.verify()

    def _open(self, threads: int | None, pin: bool) -> None:
        """Load the code and the weights."""
        bundle = self.bundle
        wanted = check_threads(threads, pin, bundle.manifest.threads, bundle.manifest.name)
        self._library: Any = open_code(bundle)
        self._pool = open_pool(self._library, wanted, pin)
        self.threads = 1 if self._pool is None else self._pool.threads
        self._main: Any = main_of(self._library, bundle)
        self._weights: Any = pack_weights(list(bundle.weights.values()))

    @property
    def batch(self) -> int | None:
        """N, the number of streams side by side; None while the first input has yet to decide it."""
        return None if self._stream is None else self._stream.symbols.get("N")

    @property
    def target(self) -> str:
        """The name of the target whose code runs."""
        return self._manifest.target.name

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._main is None

    @property
    def graph(self) -> str:
        """On a GPU, whether steps are replayed as a CUDA graph: "captured", or why not; "" on a CPU."""
        return ""

    def step(self, *inputs: Any) -> Arrays:
        """One time step: inputs and outputs without their time axis. Raises SessionError for a wrong shape or
        dtype.
        """
        with self._lock:
            stream = self._stream
            if stream is None or not stream.slots:
                stream = self._begin_steps(inputs)
            if len(inputs) != len(stream.slots):
                self._refuse_call(inputs)
            for array, slot in zip(inputs, stream.slots, strict=True):
                if (
                    not isinstance(array, np.ndarray)
                    or array.dtype != slot.dtype
                    or array.shape != slot.shape
                ):
                    raise mismatch(slot.spec, slot.shape, array)
                if slot.below is not None:
                    check_range(slot.spec, array)
                slot.view[...] = array
            if not stream.recorded:
                self._record(stream)
            outputs = self._advance(stream) if stream.replay is None else self._again(stream.replay)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def run(self, *inputs: Any) -> Arrays:
        """T time steps at once: inputs and outputs with their time axis. Raises SessionError for a wrong
        shape or dtype.
        """
        with self._lock:
            if len(inputs) != len(self._manifest.inputs) or self._main is None:
                self._refuse_call(inputs)
            stream = self._fitting(self._bound(self._manifest.inputs, inputs))
            tensors = [from_dlpack(array if is_usable(array) else aligned_copy(array)) for array in inputs]
            outputs = self._call_stream(stream, tensors)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def reset(self) -> None:
        """Back to the zero state; a batch that load() was not given is again open."""
        with self._lock:
            self._refuse_closed()
            self._clear()

    @property
    def state(self) -> dict[str, np.ndarray]:
        """A copy of the state, by name. Empty for a model without state; SessionError while the batch is
        unknown.
        """
        with self._lock:
            self._refuse_closed()
            if not self._manifest.state:
                return {}
            if self._stream is None:
                raise SessionError(
                    "state",
                    "a known batch",
                    "a session that has seen no input",
                    "Give the batch at load, or run a step first.",
                )
            names = [spec.name for spec in self._manifest.state]
            return dict(zip(names, self._stream.read_state(), strict=True))

    @state.setter
    def state(self, values: Mapping[str, Any] | Sequence[Any]) -> None:
        with self._lock:
            self._refuse_closed()
            specs = self._manifest.state
            arrays = in_order(specs, values)
            symbols = self._bound(specs, arrays)
            if specs:
                self._fitting(symbols).write_state(arrays)

    def verify(self) -> float:
        """Run the golden input from its own state; return the largest |got - golden|. The stream goes on.

        Raises BundleError where it exceeds tolerance * max(1, max|golden|) of an output or a state.
        """
        manifest = self._manifest
        inputs = golden_values(self.bundle, "input", manifest.inputs)
        state = golden_values(self.bundle, "state", manifest.state)
        with self._lock:
            self._refuse_closed()
            try:
                bind((*manifest.inputs, *manifest.state), (*inputs, *state), {})
            except SessionError as error:
                raise BundleError(
                    f"golden values of {manifest.name!r}", error.needs, error.got, "Compile it anew."
                ) from error
            results = self._run_from(inputs, state)
        golden = [
            *golden_values(self.bundle, "output", manifest.outputs),
            *golden_values(self.bundle, "new_state", manifest.state),
        ]
        names = [spec.name for spec in (*manifest.outputs, *manifest.state)]
        return max(
            golden_error(manifest, name, result, wanted, self.bundle.golden.get(f"scores.{name}"))
            for name, result, wanted in zip(names, results, golden, strict=True)
        )

    def close(self) -> None:
        """Let go of the weights, the state and the code. Closing twice is no error; anything else afterwards
        is.
        """
        with self._lock:
            if self._pool is not None:
                self._pool.close()
            self._pool = self._stream = self._spare = None
            self._library = self._main = self._weights = None

    def __enter__(self) -> Session:
        self._refuse_closed()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        word = "closed" if self.closed else f"batch {self.batch or 'open'}"
        return f"<Session {self._manifest.name!r} for {self._manifest.target.name}, {word}>"

    def _run_from(self, inputs: list[np.ndarray], state: list[np.ndarray]) -> list[np.ndarray]:
        """The results of a run from that state; the stream's own is left as it is."""
        given = [[from_dlpack(aligned_copy(array)) for array in arrays] for arrays in (inputs, state)]
        return list(map(as_numpy, self._call(*given)))

    def _call(self, tensors: list[Any], state: list[Any]) -> list[Any]:
        try:
            results = self._on_threads(self._main, *tensors, *state, self._weights)
            return list(map(item, repeat(results), range(self._count + len(state))))
        except Exception as error:
            raise self._broken(error) from error

    def _call_stream(self, stream: Stream, tensors: list[Any]) -> list[np.ndarray]:
        """Call the model on the VM, keep the new state, return the outputs."""
        results = list(map(as_numpy, self._call(tensors, stream.state_tensors)))
        outputs, state = results[: self._count], [array.copy() for array in results[self._count :]]
        if self._aliased is None:
            given = map(as_numpy, (*tensors, *stream.state_tensors, *weights_of(self._weights)))
            self._aliased = any(np.may_share_memory(a, b) for b in given for a in outputs)
        if (
            self._aliased
        ):  # a graph may hand an input or weight straight back; outputs are the caller's to change
            outputs = [array.copy() for array in outputs]
        for buffer, array in zip(stream.state, state, strict=True):
            if buffer.shape != array.shape:
                raise self._broken(f"a new state of shape {array.shape} after one of {buffer.shape}")
        stream.write_state(state)
        return outputs

    def _advance(self, stream: Stream) -> list[np.ndarray]:
        """One step on the VM."""
        outputs = self._call_stream(stream, stream.step_tensors)
        return [array[at] for array, at in zip(outputs, self._squeeze, strict=True)]

    def _again(self, replay: Replay) -> list[np.ndarray]:
        """One step without the VM."""
        try:
            return self._on_threads(replay.step)
        except Exception as error:
            raise self._broken(error) from error

    def _on_threads(self, function: Any, *arguments: Any) -> Any:
        return function(*arguments) if self._pool is None else self._pool.run(function, *arguments)

    def _record(self, stream: Stream) -> None:
        stream.recorded = True
        try:
            stream.replay = self._on_threads(
                record, self._library, stream.step_tensors, stream.state_tensors, self._weights, self._squeeze
            )
        except Exception as error:
            raise self._broken(error) from error

    def _known(self) -> dict[str, int]:
        """The sizes that are fixed."""
        if self._stream is not None:
            return self._stream.symbols
        return {} if self._given_batch is None else {"N": self._given_batch}

    def _bound(self, specs: Sequence[Any], arrays: Sequence[Any]) -> dict[str, int]:
        return bind(specs, arrays, self._known())

    def _clear(self) -> None:
        """The zero state, and no sizes fixed but those that need no input."""
        self._spare, self._stream = self._stream or self._spare, None
        dims = {dim for spec in self._manifest.inputs for dim in spec.shape if isinstance(dim, str)} - {"T"}
        if dims <= set(self._known()):
            self._fitting(self._known())

    def _new_stream(self, symbols: Mapping[str, int]) -> Any:
        return Stream(self._manifest, symbols)

    def _fitting(self, symbols: Mapping[str, int]) -> Stream:
        """The stream, begun from the zero state with these sizes where it has none yet."""
        if self._stream is None:
            fixed = {name: size for name, size in symbols.items() if name != "T"}
            if self._spare is None or self._spare.symbols != fixed:
                self._spare = self._new_stream(fixed)
            self._stream = self._spare
            self._stream.clear()
        return self._stream

    def _begin_steps(self, inputs: Sequence[np.ndarray]) -> Stream:
        specs = self._manifest.inputs
        if self._main is None or len(inputs) != len(specs):
            self._refuse_call(inputs)
        if not self._manifest.streaming:
            raise SessionError(
                f"bundle {self._manifest.name!r}",
                f"a whole sequence, as {self._manifest.no_stream or 'the model also reads it backwards'}",
                "one step",
                "Use run(xs).",
            )
        symbols = self._bound([timeless(spec) for spec in specs], inputs)
        stream = self._fitting(symbols)
        if not stream.slots:  # those of a stream that was reset are what its recorded calls read
            stream.open_slots(specs, symbols)
        return stream

    def _broken(self, got: object) -> SessionError:
        return SessionError(
            f"bundle {self._manifest.name!r}",
            "code that takes and returns what its manifest lists",
            str(got).strip()[:400],
            "Compile the model anew.",
        )

    def _refuse_call(self, inputs: Sequence[object]) -> None:
        self._refuse_closed()
        specs = self._manifest.inputs
        if len(inputs) != len(specs):
            raise SessionError(
                f"bundle {self._manifest.name!r}",
                f"{len(specs)} inputs ({', '.join(spec.name for spec in specs)})",
                str(len(inputs)),
                "The state is kept by the session; give the inputs alone.",
            )

    def _refuse_closed(self) -> None:
        if self._main is None:
            raise SessionError(
                f"session over {self._manifest.name!r}",
                "an open session",
                "a closed one",
                "Load the bundle again.",
            )
