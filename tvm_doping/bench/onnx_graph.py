"""A subject as an ONNX model: the one graph that ONNX Runtime and OpenVINO both get."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tvm_doping.bench.subject import DenseLayer, Subject

OPSET, IR_VERSION = 17, 8  # old enough for every release of both that installs today


def onnx_model(subject: Subject) -> Any:
    """An onnx.ModelProto with inputs x, h0, c0, h1, ... and outputs y, h0_new, c0_new, ...; T and N symbolic.

    States are (1, N, H) a layer, as ONNX's LSTM has them; its gates are i, o, f, c, PyTorch's i, f, g, o.
    """
    from onnx import TensorProto, helper, numpy_helper

    constants: list[Any] = []
    nodes: list[Any] = []
    inputs: list[Any] = []
    outputs: list[Any] = []

    def constant(name: str, array: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    last, first = subject.layers[-1], subject.layers[0]
    if subject.embedding is None:
        inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", "N", first.inputs]))
        value = "x"
    else:
        inputs.append(helper.make_tensor_value_info("x", TensorProto.INT64, ["T", "N"]))
        nodes.append(
            helper.make_node("Gather", [constant("embedding", subject.embedding), "x"], ["embedded"])
        )
        value = "embedded"
    axis = constant("direction_axis", np.array([1], "int64"))
    for index, layer in enumerate(subject.layers):
        state = [f"h{index}", f"c{index}"]
        new = [f"h{index}_new", f"c{index}_new"]
        for names, values in ((state, inputs), (new, outputs)):
            values += [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "N", layer.hidden])
                for name in names
            ]
        w, r, b = (constant(f"{key}{index}", array) for key, array in zip("WRB", _arrays(layer), strict=True))
        nodes.append(
            helper.make_node(
                "LSTM", [value, w, r, b, "", *state], [f"four_axes{index}", *new], hidden_size=layer.hidden
            )
        )
        value = "y" if subject.decoder is None and index == len(subject.layers) - 1 else f"y{index}"
        nodes.append(helper.make_node("Squeeze", [f"four_axes{index}", axis], [value]))
    width = last.hidden
    if subject.decoder is not None:
        weight, bias = subject.decoder
        width = len(bias)
        nodes.append(helper.make_node("MatMul", [value, constant("decoder", weight.T)], ["product"]))
        nodes.append(helper.make_node("Add", ["product", constant("decoder_bias", bias)], ["y"]))
    outputs.insert(0, helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", "N", width]))
    graph = helper.make_graph(nodes, "subject", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _arrays(layer: DenseLayer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W (1, 4H, I), R (1, 4H, H), B (1, 8H) in ONNX's order of gates."""

    def reorder(array: np.ndarray) -> np.ndarray:
        i, f, g, o = np.split(array, 4)
        return np.concatenate([i, o, f, g])

    biases = np.concatenate([reorder(layer.b_ih), reorder(layer.b_hh)])
    return reorder(layer.w_ih)[None], reorder(layer.w_hh)[None], biases[None]
