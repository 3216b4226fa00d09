"""OpenVINO on the CPU, fp32, set up for latency, with fixed shapes."""

from __future__ import annotations

import numpy as np
import openvino as ov

from tvm_doping.bench.engines.stream import Stream
from tvm_doping.bench.onnx_graph import onnx_model
from tvm_doping.bench.subject import Subject


def engine(subject: Subject, *, threads: int, precision: str) -> OpenVino:
    """The subject for `threads` threads. OpenVINO may choose bf16 by itself: it is held to f32."""
    return OpenVino(subject, threads)


class OpenVino:
    """The ONNX model, reshaped and compiled for each T and N (fixed shapes are faster)."""

    def __init__(self, subject: Subject, threads: int) -> None:
        self.subject = subject
        self.core = ov.Core()
        self.serialised = onnx_model(subject).SerializeToString()
        self.properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }

    def open(self, steps: int, batch: int) -> Stream:
        """Two requests in turn that share buffers: what one writes as new state, the other reads as old."""
        model = self.core.read_model(self.serialised, b"")
        shapes = {
            "x": [
                steps,
                batch,
                *([] if self.subject.embedding is not None else [self.subject.layers[0].inputs]),
            ]
        }
        for index, layer in enumerate(self.subject.layers):
            shapes[f"h{index}"] = shapes[f"c{index}"] = [1, batch, layer.hidden]
        model.reshape(shapes)
        compiled = self.core.compile_model(model, "CPU", self.properties)
        states = [name for name in shapes if name != "x"]
        old = {name: ov.Tensor(np.zeros(shapes[name], "float32")) for name in states}
        new = {name: ov.Tensor(np.zeros(shapes[name], "float32")) for name in states}
        x_in = ov.Tensor(np.ascontiguousarray(self.subject.inputs(steps, batch, 1, 0)[0]))
        y_out = ov.Tensor(np.empty(list(compiled.output("y").shape), "float32"))
        requests = []
        for source, target in ((old, new), (new, old)):
            request = compiled.create_infer_request()
            request.set_tensor("x", x_in)
            request.set_tensor("y", y_out)
            for name in states:
                request.set_tensor(name, source[name])
                request.set_tensor(f"{name}_new", target[name])
            requests.append(request)
        x_view, y_view, turn = x_in.data, y_out.data, [0]

        def call(x: np.ndarray) -> np.ndarray:
            x_view[...] = x
            requests[turn[0]].infer()
            turn[0] ^= 1
            return y_view

        def reset() -> None:
            turn[0] = 0
            for tensor in old.values():
                tensor.data.fill(0)

        return Stream(call=call, reset=reset, note="latency hint, f32")
