"""The session: a stream with state over a bundle.

Needs NumPy and TVM's runtime library; imports neither torch nor TVM's compiler.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from itertools import repeat
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_doping._runtime import as_numpy, from_dlpack, item, open_library, pack_weights
from tvm_doping.arrays import aligned_copy, aligned_empty, aligned_zeros, is_usable
from tvm_doping.bundle import LIBRARY, Bundle, check_machine
from tvm_doping.errors import BundleError, InvalidInput, SessionError
from tvm_doping.signature import bind, check_range, first_step, mismatch, sizes, timeless

if TYPE_CHECKING:
    from tvm_doping.manifest import Manifest, TensorSpec

Arrays = Any  # an array where the model has one output, else a tuple of arrays: which, its manifest says


def load(path: str | os.PathLike[str], *, batch: int | None = None, verify: bool = False) -> Session:
    """Open a bundle as a stream: check all of it, then load its code.

    batch: how many streams run side by side (N); by default the first input decides.
    verify: also run the bundle's golden input and compare with its golden output.
    Raises BundleError for a bundle that is missing, damaged, edited, or made for another machine.
    """
    return Session(Bundle.load(path), batch=batch, verify=verify)


class Session:
    """A stream with state. Inputs and outputs as the manifest orders them; several outputs are a tuple.

    `step(x)` takes one time step (no time axis), `run(xs)` takes T of them; both carry the state on, so that
    running a sequence in pieces equals running it at once. Sessions are independent; calls of one session
    wait for each other.
    """

    def __init__(self, bundle: Bundle, *, batch: int | None = None, verify: bool = False) -> None:
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
        self._main: Any = _load_main(bundle)
        self._weights: Any = pack_weights(list(bundle.weights.values()))
        self._given_batch = batch
        self._count = len(bundle.manifest.outputs)
        self._squeeze = [first_step(spec) for spec in bundle.manifest.outputs]
        self._aliased: bool | None = None  # not known before the first call
        self._slots: list[_Slot] = []
        self._step_tensors: list[Any] = []
        self._state: list[Any] = []
        self._symbols: dict[str, int] = {}
        self._bound = False  # whether the sizes of the stream are fixed
        self._clear()
        if verify:
            self.verify()

    @property
    def batch(self) -> int | None:
        """N, the number of streams side by side; None while the first input has yet to decide it."""
        return self._symbols.get("N")

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._main is None

    def step(self, *inputs: np.ndarray) -> Arrays:
        """One time step: inputs and outputs without their time axis. Raises SessionError for a wrong shape or
        dtype.
        """
        with self._lock:
            slots = self._slots or self._open_slots(inputs)
            if len(inputs) != len(slots) or self._main is None:
                self._refuse_call(inputs)
            for array, slot in zip(inputs, slots, strict=True):
                if (
                    not isinstance(array, np.ndarray)
                    or array.dtype != slot.dtype
                    or array.shape != slot.shape
                ):
                    raise mismatch(slot.spec, slot.shape, array)
                if slot.spec.below is not None:
                    check_range(slot.spec, array)
                slot.view[...] = array
            outputs = self._advance(self._step_tensors)
        if len(outputs) == 1:
            return outputs[0][self._squeeze[0]]
        return tuple(array[at] for array, at in zip(outputs, self._squeeze, strict=True))

    def run(self, *inputs: np.ndarray) -> Arrays:
        """T time steps at once: inputs and outputs with their time axis. Raises SessionError for a wrong
        shape or dtype.
        """
        with self._lock:
            if len(inputs) != len(self._manifest.inputs) or self._main is None:
                self._refuse_call(inputs)
            symbols = bind(self._manifest.inputs, inputs, self._symbols)
            symbols.pop("T", None)
            if not self._bound:
                self._fix(symbols)
            tensors = [from_dlpack(array if is_usable(array) else aligned_copy(array)) for array in inputs]
            outputs = self._advance(tensors)
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
            if self._manifest.state and not self._bound:
                raise SessionError(
                    "state",
                    "a known batch",
                    "a session that has seen no input",
                    "Give the batch at load, or run a step first.",
                )
            return {
                s.name: as_numpy(t).copy() for s, t in zip(self._manifest.state, self._state, strict=True)
            }

    @state.setter
    def state(self, values: Mapping[str, np.ndarray] | Sequence[np.ndarray]) -> None:
        with self._lock:
            self._refuse_closed()
            specs = self._manifest.state
            if isinstance(values, Mapping):
                if set(values) != {spec.name for spec in specs}:
                    raise SessionError(
                        "state",
                        ", ".join(s.name for s in specs) or "nothing",
                        ", ".join(values),
                        "Set all of it at once.",
                    )
                arrays = [values[spec.name] for spec in specs]
            else:
                arrays = list(values)
            if len(arrays) != len(specs):
                raise SessionError(
                    "state", f"{len(specs)} arrays", str(len(arrays)), "Set all of it at once."
                )
            symbols = bind(specs, arrays, self._symbols)
            if not self._bound and specs:
                self._fix(symbols)
            self._state = [from_dlpack(aligned_copy(array)) for array in arrays]

    def verify(self) -> float:
        """Run the golden input from its own state; return the largest |got - golden|. The stream goes on.

        Raises BundleError where it exceeds tolerance * max(1, max|golden|) of an output or a state.
        """
        manifest = self._manifest
        inputs, state = self._golden("input", manifest.inputs), self._golden("state", manifest.state)
        with self._lock:
            self._refuse_closed()
            try:
                bind((*manifest.inputs, *manifest.state), (*inputs, *state), {})
            except SessionError as error:
                raise BundleError(
                    f"golden values of {manifest.name!r}", error.needs, error.got, "Compile it anew."
                ) from error
            before = [[from_dlpack(aligned_copy(array)) for array in arrays] for arrays in (inputs, state)]
            results = self._call(*before)
        golden = self._golden("output", manifest.outputs) + self._golden("new_state", manifest.state)
        names = [spec.name for spec in (*manifest.outputs, *manifest.state)]
        return max(
            _compare(manifest, name, as_numpy(result), wanted)
            for name, result, wanted in zip(names, results, golden, strict=True)
        )

    def close(self) -> None:
        """Let go of the weights, the state and the code. Closing twice is no error; anything else afterwards
        is.
        """
        with self._lock:
            self._clear()
            self._main = self._weights = None

    def __enter__(self) -> Session:
        self._refuse_closed()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        word = "closed" if self.closed else f"batch {self.batch or 'open'}"
        return f"<Session {self._manifest.name!r} for {self._manifest.target.name}, {word}>"

    def _golden(self, group: str, specs: Sequence[TensorSpec]) -> list[np.ndarray]:
        names = [f"{group}.{spec.name}" for spec in specs]
        missing = [name for name in names if name not in self.bundle.golden]
        if missing:
            raise BundleError(
                f"bundle {self._manifest.name!r}",
                "golden values to verify",
                f"no {missing[0]}",
                "Compile it anew.",
            )
        return [self.bundle.golden[name] for name in names]

    def _call(self, tensors: list[Any], state: list[Any]) -> list[Any]:
        try:
            results = self._main(*tensors, *state, self._weights)
            return list(map(item, repeat(results), range(self._count + len(state))))
        except Exception as error:
            raise SessionError(
                f"bundle {self._manifest.name!r}",
                "code that takes and returns what its manifest lists",
                str(error).strip()[:400],
                "Compile the model anew.",
            ) from error

    def _advance(self, tensors: list[Any]) -> list[np.ndarray]:
        """Call the model, keep the new state, return the outputs."""
        results = self._call(tensors, self._state)
        outputs = list(map(as_numpy, results[: self._count]))
        state = results[self._count :]
        if self._aliased is None:
            self._aliased = _share_memory(outputs, state, [*tensors, *self._weights])
        if self._aliased:
            outputs = [array.copy() for array in outputs]
            state = [from_dlpack(aligned_copy(as_numpy(tensor))) for tensor in state]
        self._state = state
        return outputs

    def _clear(self) -> None:
        self._slots, self._step_tensors, self._state = [], [], []
        self._symbols = {}
        self._bound = False
        dims = {dim for spec in self._manifest.inputs for dim in spec.shape if isinstance(dim, str)} - {"T"}
        if not dims:
            self._fix({})
        elif self._given_batch is not None and dims == {"N"}:
            self._fix({"N": self._given_batch})

    def _fix(self, symbols: Mapping[str, int]) -> None:
        """Fix the sizes of the stream, and start it from the zero state."""
        self._symbols = dict(symbols)
        self._state = [
            from_dlpack(aligned_zeros(sizes(spec, symbols), spec.dtype)) for spec in self._manifest.state
        ]
        self._bound = True

    def _open_slots(self, inputs: Sequence[np.ndarray]) -> list[_Slot]:
        """Fixed, aligned buffers that step() copies its inputs into: cheaper than checking each array's
        alignment.
        """
        specs = self._manifest.inputs
        if self._main is None or len(inputs) != len(specs):
            self._refuse_call(inputs)
        if not self._manifest.streaming:
            raise SessionError(
                f"bundle {self._manifest.name!r}",
                "a whole sequence, as the model also reads it backwards",
                "one step",
                "Use run(xs).",
            )
        if not self._bound:
            self._fix(bind([timeless(spec) for spec in specs], inputs, self._symbols))
        self._slots = [_Slot(spec, self._symbols) for spec in specs]
        self._step_tensors = [from_dlpack(slot.buffer) for slot in self._slots]
        return self._slots

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


class _Slot:
    """The buffer of one input of step(): `buffer` with a time axis of 1, `view` the same without it."""

    __slots__ = ("buffer", "dtype", "shape", "spec", "view")

    def __init__(self, spec: TensorSpec, symbols: Mapping[str, int]) -> None:
        self.spec = spec
        self.dtype = np.dtype(spec.dtype)
        self.buffer = aligned_empty(sizes(spec, {**symbols, "T": 1}), self.dtype)
        self.shape = sizes(timeless(spec), symbols)
        self.view = self.buffer.reshape(self.shape)


def _load_main(bundle: Bundle) -> Any:
    try:
        if bundle.folder is not None:
            return open_library(bundle.folder / LIBRARY)
        with tempfile.TemporaryDirectory(
            prefix="tvm-doping-"
        ) as folder:  # mapped once loaded: the file may go
            path = Path(folder) / LIBRARY
            path.write_bytes(bundle.library)
            return open_library(path)
    except (RuntimeError, ValueError, AttributeError, OSError) as error:
        raise BundleError(
            f"bundle {bundle.manifest.name!r}",
            "a library that this TVM runtime loads",
            str(error).strip()[:400],
            "Compile the model anew.",
        ) from error


def _share_memory(outputs: Sequence[np.ndarray], state: Sequence[Any], given: Sequence[Any]) -> bool:
    """Whether a graph hands an input or weight straight back, or one array as output and as state.

    Such results are copied, because a step's buffers are overwritten and outputs are the caller's to change.
    """
    states, givens = ([as_numpy(tensor) for tensor in tensors] for tensors in (state, given))
    pairs = [(a, b) for a in outputs for b in (*states, *givens)] + [(a, b) for a in states for b in givens]
    return any(np.may_share_memory(a, b) for a, b in pairs)


def _compare(manifest: Manifest, name: str, got: np.ndarray, golden: np.ndarray) -> float:
    """The largest |got - golden|; BundleError beyond the bundle's tolerance."""
    where = f"{name!r} of {manifest.name!r}"
    if golden.shape != got.shape:
        raise BundleError(
            where, f"a golden value of shape {got.shape}", f"{golden.shape}", "Compile it anew."
        )
    error = float(np.max(np.abs(got.astype(np.float64) - golden.astype(np.float64)), initial=0.0))
    allowed = manifest.tolerance * max(1.0, float(np.max(np.abs(golden), initial=0.0)))
    if not error <= allowed:  # also catches NaN
        raise BundleError(
            where, f"the golden value within {allowed:.3g}", f"{error:.3g} off", "Compile it anew."
        )
    return error
