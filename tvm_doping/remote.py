"""A session whose code runs on another machine, one that an RPC tracker lends: what is compiled here, tried on the device."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from tvm_doping._tvm import tvm
from tvm_doping.bundle import Bundle
from tvm_doping.errors import InvalidInput, SessionError
from tvm_doping.golden import golden_error, golden_values
from tvm_doping.signature import bind, sizes

_CPU, _FIRST, _POOLED = 1, 0, 2  # as in _runtime.py
_LIBRARY, _WEIGHTS, _INDEX = "model.so", "weights.bin", "tensor-cache.json"


def load_remote(
    path: str | os.PathLike[str], *, tracker: str, key: str, target: str = "auto", verify: bool = False
) -> RemoteSession:
    """Send a bundle to a device that the tracker at "HOST:PORT" lends as `key`, and open it there as a stream.

    target: of a bundle for several targets, the one whose code to send. What the device's CPU can do is not known here.
    Raises BundleError as `load` does, InvalidInput for a tracker that is not there or knows no such device.
    """
    bundle = Bundle.load(path, target=target, any_machine=True)
    if target == "auto" and len(bundle.targets) > 1:
        raise InvalidInput(
            "target",
            f"one of {', '.join(bundle.targets)} for a device",
            "auto",
            "Name the device's: --target.",
        )
    session = RemoteSession(bundle, borrow(tracker, key))
    if verify:
        session.verify()
    return session


def borrow(tracker: str, key: str, seconds: float = 0) -> Any:
    """TVM's RPC session with a device of the tracker, for so many seconds (0: as long as it is kept)."""
    from tvm import rpc

    host, _, port = tracker.rpartition(":")
    remedy = "Start them: `tvm-doping farm tracker`, and on the device `tvm-doping farm server`."
    if not re.fullmatch(r"[^\s:]+:\d+", tracker):
        raise InvalidInput("tracker", "HOST:PORT", repr(tracker), "For example 127.0.0.1:9190.")
    try:
        with socket.create_connection((host, int(port)), timeout=10):
            pass  # TVM itself would try for a minute
        connected = rpc.connect_tracker(host, int(port))
    except (OSError, RuntimeError) as error:
        raise InvalidInput(f"the tracker {tracker}", "to answer", str(error), remedy) from error
    devices = {info["key"].removeprefix("server:") for info in connected.summary()["server_info"]}
    if key not in devices:
        known = ", ".join(sorted(devices)) or "none"
        raise InvalidInput(f"the tracker {tracker}", f"a device of the key {key!r}", f"keys: {known}", remedy)
    return connected.request(key, session_timeout=seconds)


class RemoteSession:
    """As a Session, over a network: the code, the weights and one call at a time are on the device, the state is kept here."""

    def __init__(self, bundle: Bundle, device: Any) -> None:
        self.bundle, self._device = bundle, device
        self._manifest = bundle.manifest
        self._state: list[np.ndarray] | None = None
        with _asked(self.target):
            device.upload(bytearray(bundle.library), _LIBRARY)
            library = device.load_module(_LIBRARY)
            with suppress(AttributeError):  # of kernels that share their work one thread does all of it
                library.get_function("doping_install", True)()
            self._machine = library["vm_load_executable"]()
            self._machine["vm_initialization"](_CPU, _FIRST, _POOLED)
            self._weights = _sent(device, list(bundle.weights.values()))

    @property
    def target(self) -> str:
        """The name of the target whose code runs."""
        return self._manifest.target.name

    def run(self, *inputs: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """T time steps at once, as Session.run. SessionError for a wrong shape or dtype."""
        self._put(inputs, self._begun(inputs))
        results = self._results()
        count = len(self._manifest.outputs)
        self._state = results[count:]
        return results[0] if count == 1 else tuple(results[:count])

    def verify(self) -> float:
        """Run the golden input there from its own state; return the largest difference, as Session.verify. BundleError beyond the
        bundle's tolerance."""
        manifest, golden = self._manifest, self.bundle.golden
        self._put(
            *(
                golden_values(self.bundle, *group)
                for group in (("input", manifest.inputs), ("state", manifest.state))
            )
        )
        specs = {"output": manifest.outputs, "new_state": manifest.state}
        wanted = [array for group, own in specs.items() for array in golden_values(self.bundle, group, own)]
        names = [spec.name for own in specs.values() for spec in own]
        return max(
            golden_error(manifest, name, got, array, golden.get(f"scores.{name}"))
            for name, got, array in zip(names, self._results(), wanted, strict=True)
        )

    def time(self, *inputs: np.ndarray, samples: int = 15) -> float:
        """Microseconds of `run` with these inputs on the device, the median of so many samples; the stream goes on as it was."""
        self._put(inputs, self._begun(inputs))
        evaluator = self._machine.time_evaluator(
            "invoke_stateful", self._device.cpu(), number=1, repeat=samples, min_repeat_ms=4
        )
        with _asked(self.target):
            return 1e6 * float(evaluator("main").median)

    def reset(self) -> None:
        """Back to the zero state; N is open again."""
        self._state = None

    @property
    def state(self) -> dict[str, np.ndarray]:
        """A copy of the state, by name; empty for a model without one, SessionError before the first input."""
        specs = self._manifest.state
        if self._state is None and specs:
            raise SessionError(
                "state", "a known batch", "a session that has seen no input", "Run a step first."
            )
        return {spec.name: array.copy() for spec, array in zip(specs, self._state or [], strict=True)}

    @state.setter
    def state(self, values: Mapping[str, np.ndarray]) -> None:
        specs = self._manifest.state
        if set(values) != {spec.name for spec in specs}:
            names = ", ".join(spec.name for spec in specs) or "nothing"
            raise SessionError("state", names, ", ".join(values), "Set all of it at once.")
        arrays = [values[spec.name] for spec in specs]
        bind(specs, arrays, {})
        self._state = [array.copy() for array in arrays]

    def close(self) -> None:
        """Give the device back."""
        self._machine = self._weights = self._device = None

    def __enter__(self) -> RemoteSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _begun(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The state before a call with these inputs, zero where there is none yet; SessionError where they do not fit."""
        manifest = self._manifest
        if self._device is None or len(inputs) != len(manifest.inputs):
            got = "a closed session" if self._device is None else str(len(inputs))
            raise SessionError("inputs", f"{len(manifest.inputs)} arrays", got, "Give one for each input.")
        specs, state = (
            (manifest.inputs, [])
            if self._state is None
            else ((*manifest.state, *manifest.inputs), self._state)
        )
        symbols = bind(specs, [*state, *inputs], {})
        return state or [np.zeros(sizes(spec, symbols), spec.dtype) for spec in manifest.state]

    def _put(self, inputs: Sequence[np.ndarray], state: Sequence[np.ndarray]) -> None:
        """Send the arguments of a call."""
        with _asked(self.target):
            where = self._device.cpu()
            tensors = [tvm.runtime.tensor(np.ascontiguousarray(array), where) for array in (*inputs, *state)]
            # it copies them: over RPC tensors come as views, which a direct call takes for objects and crashes on
            self._machine["set_input"]("main", *tensors, self._weights)

    def _results(self) -> list[np.ndarray]:
        """Call `main` with what was sent; outputs and new state."""
        count = len(self._manifest.outputs) + len(self._manifest.state)
        with _asked(self.target):
            self._machine["invoke_stateful"]("main")
            return [self._machine["get_output"]("main", index).numpy() for index in range(count)]


@contextmanager
def _asked(target: str) -> Iterator[None]:
    """SessionError for whatever goes wrong on the device: its process may have crashed, or the network be gone."""
    try:
        yield
    except Exception as error:
        text = str(error).strip()[-300:]
        remedy = f"See what its server printed; its CPU needs all that {target} has (`tvm-doping targets`)."
        raise SessionError("the device", "to answer", text, remedy) from error


def _sent(device: Any, arrays: Sequence[np.ndarray]) -> Any:
    """The arrays as the one tuple that `main` takes, on the device: over RPC tensors make no tuple, but TVM's cache of tensors
    does, of files that are sent there."""
    records, content = [], bytearray()
    for index, array in enumerate(arrays):
        place = {"format": "raw", "nbytes": array.nbytes, "byteOffset": len(content)}
        records.append({"name": f"w_{index}", "shape": list(array.shape), "dtype": str(array.dtype), **place})
        content += array.tobytes()
    shard = {"dataPath": _WEIGHTS, "format": "raw-shard", "nbytes": len(content), "records": records}
    device.upload(content, _WEIGHTS)
    device.upload(bytearray(json.dumps({"metadata": {}, "records": [shard]}).encode()), _INDEX)
    folder = device.get_function("tvm.rpc.server.workpath")("")
    device.get_function("vm.builtin.tensor_cache.load")(folder, _CPU, _FIRST)
    return device.get_function("vm.builtin.param_array_from_cache")("w", len(arrays))
