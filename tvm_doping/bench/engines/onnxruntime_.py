"""ONNX Runtime on the CPU: fp32, or quantised dynamically to int8 as its documentation shows."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from tvm_doping.bench.engines.stream import Stream
from tvm_doping.bench.onnx_graph import onnx_model
from tvm_doping.bench.subject import Subject

_TRIAL = 0.05  # seconds for each of the two ways of calling, to see which is faster


def engine(subject: Subject, *, threads: int, precision: str) -> OnnxRuntime:
    """The subject in a session of `threads` threads; precision "fp32" or "int8" (QInt8 weights)."""
    return OnnxRuntime(subject, threads, precision)


class OnnxRuntime:
    """One inference session, all graph optimisations on."""

    def __init__(self, subject: Subject, threads: int, precision: str) -> None:
        self.subject = subject
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        model = onnx_model(subject)
        serialised = _quantised(model) if precision == "int8" else model.SerializeToString()
        self.session = ort.InferenceSession(serialised, options, providers=["CPUExecutionProvider"])

    def open(self, steps: int, batch: int) -> Stream:
        """The faster of `run` with arrays and `run_with_iobinding` with two sets of state buffers in turn."""
        ways = {"run": self._plain(batch), "io binding": self._bound(steps, batch)}
        x = self.subject.inputs(steps, batch, 1, 0)[0]
        best = min(ways, key=lambda way: _seconds(ways[way], x))
        ways[best].reset()
        return Stream(call=ways[best].call, reset=ways[best].reset, note=best)

    def _plain(self, batch: int) -> Stream:
        names = [value.name for value in self.session.get_outputs()]
        feed: dict[str, np.ndarray] = {}
        states = [name.removesuffix("_new") for name in names[1:]]

        def reset() -> None:
            feed.update((name, self._zeros(name, batch)) for name in states)

        def call(x: np.ndarray) -> np.ndarray:
            feed["x"] = x
            y, *new = self.session.run(names, feed)
            feed.update(zip(states, new, strict=True))
            return y

        reset()
        return Stream(call=call, reset=reset)

    def _bound(self, steps: int, batch: int) -> Stream:
        names = [value.name for value in self.session.get_outputs()]
        states = [name.removesuffix("_new") for name in names[1:]]
        x_in = np.empty_like(self.subject.inputs(steps, batch, 1, 0)[0])
        y_out = np.empty((steps, batch, self.session.get_outputs()[0].shape[2]), "float32")
        old = {name: self._zeros(name, batch) for name in states}
        new = {name: self._zeros(name, batch) for name in states}
        bindings = []
        for source, target in ((old, new), (new, old)):
            binding = self.session.io_binding()
            for name, array in {"x": x_in, **source}.items():
                binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            for name, array in {
                "y": y_out,
                **{f"{name}_new": array for name, array in target.items()},
            }.items():
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            bindings.append(binding)
        turn = [0]

        def call(x: np.ndarray) -> np.ndarray:
            x_in[...] = x
            self.session.run_with_iobinding(bindings[turn[0]])
            turn[0] ^= 1
            return y_out

        def reset() -> None:
            turn[0] = 0
            for array in (
                *old.values(),
                *new.values(),
            ):  # this also keeps `new` alive: a binding only has its address
                array.fill(0)

        return Stream(call=call, reset=reset)

    def _zeros(self, name: str, batch: int) -> np.ndarray:
        return np.zeros((1, batch, self.subject.layers[int(name[1:])].hidden), "float32")


def _quantised(model: Any) -> bytes:
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="tvm-doping-bench-") as folder:
        plain, ready, small = (Path(folder) / name for name in ("plain.onnx", "ready.onnx", "small.onnx"))
        onnx.save(model, plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_dynamic(ready, small, weight_type=QuantType.QInt8)
        return small.read_bytes()


def _seconds(stream: Stream, x: np.ndarray) -> float:
    """The median time of a call."""
    stream.call(x)
    times: list[float] = []
    end = time.perf_counter() + _TRIAL
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 200):
        start = time.perf_counter()
        stream.call(x)
        times.append(time.perf_counter() - start)
    return float(np.median(times))
