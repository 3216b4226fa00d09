"""An ExportedProgram as a Relax module: each LSTM layer and direction is one call of `doping.lstm`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from tvm_doping._tvm import StringImm, constant, handle, relax, tirx, tvm
from tvm_doping.errors import UnsupportedModel
from tvm_doping.frontend.graph import is_stack, layer_names, module_of
from tvm_doping.frontend.program import quiet

aten = torch.ops.aten
# PyTorch's decompositions would unroll these over a fixed number of time steps.
_RECURRENT = (
    aten.lstm.input, aten.lstm.data, aten.gru.input, aten.gru.data,
    aten.rnn_tanh.input, aten.rnn_tanh.data, aten.rnn_relu.input, aten.rnn_relu.data,
)  # fmt: skip


def decompose(program: ExportedProgram) -> ExportedProgram:
    """The program in PyTorch's core operators, with its LSTMs whole."""
    table = torch.export.default_decompositions()
    for operator in _RECURRENT:
        table.pop(operator, None)
    with quiet():
        return program.run_decompositions(table)


def convert(program: ExportedProgram) -> tuple[tvm.IRModule, dict[int, str]]:
    """The module, its constants bound, its symbols as PyTorch calls them, `main` returning a tuple; and the names of parameters
    and buffers by the handle of their constant's tensor.

    Raises UnsupportedModel, naming the operator and the path of its module, for what cannot be imported.
    """
    importer = _Importer()
    names = layer_names(program.graph)
    handlers = {
        "lstm.default": lambda node, _: _layer(node, importer),
        "lstm.input": lambda node, _: _stack(node, names[node], importer),
        "select.int": lambda node, _: _select(node, importer),
        "repeat.default": lambda node, _: _repeat(node, importer),
        "embedding.default": lambda node, _: _embedding(node, importer),
        "amax.default": lambda node, _: _extreme(node, importer, relax.op.max),
        "amin.default": lambda node, _: _extreme(node, importer, relax.op.min),
        "max.dim": lambda node, _: _largest(node, importer),
    }
    for node in program.graph.nodes:
        _check(node, {*importer.convert_map, *handlers})
    try:
        with quiet():
            mod = importer.from_exported_program(program, False, False, False, handlers)
    except Exception as error:
        pending = (
            node for node in program.graph.nodes if node.op == "call_function" and node not in importer.env
        )
        node = next(pending, None)
        where = _where(node) if node is not None else "the exported program"
        raise UnsupportedModel(
            where,
            "an operator that TVM's importer takes in this form",
            f"{type(error).__name__}: {_first_line(error)}",
            _remedy(node),
        ) from error
    return mod, _names(program, importer.tensors)


def lstm_call(name: str, x: Any, h0: Any, c0: Any, weights: list[Any], reverse: bool) -> Any:
    """doping.lstm(x, h0, c0, w_ih, w_hh, b_ih, b_hh, reverse, name) -> (y (T, N, H), h (N, H), c (N, H)); without bias, zeros."""
    steps, batch, _ = x.ty.shape
    hidden = int(weights[1].ty.shape[1])
    biases = [
        constant(np.zeros(4 * hidden, "float32")) if b is None else b for b in (*weights[2:], None, None)[:2]
    ]
    state = relax.TensorType((batch, hidden), "float32")
    return relax.call_dps_packed(
        "doping.lstm",
        [x, h0, c0, *weights[:2], *biases, relax.prim_value(int(reverse)), StringImm(name)],
        out_ty=[relax.TensorType((steps, batch, hidden), "float32"), state, state],
    )


class _Importer(ExportedProgramImporter):
    """TVM's importer, remembering which constant came from which tensor: it keeps no names."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[tuple[torch.Tensor, Any]] = []

    def _convert_pytorch_tensor_to_tvm(self, value: torch.Tensor) -> Any:
        converted = ExportedProgramImporter._convert_pytorch_tensor_to_tvm(value)
        self.tensors.append((value, converted))
        return converted


def _names(program: ExportedProgram, tensors: list[tuple[torch.Tensor, Any]]) -> dict[int, str]:
    known: dict[int, str] = {}
    for name, value in {**program.constants, **program.state_dict}.items():
        known.setdefault(id(value), name)  # a shared parameter has the name of its first use
    return {handle(converted): known[id(value)] for value, converted in tensors if id(value) in known}


def _layer(node: Node, importer: Any) -> Any:
    x, h0, c0, w_ih, w_hh, b_ih, b_hh, reverse, name = importer.retrieve_args(node)
    return importer.block_builder.emit(lstm_call(name, x, h0, c0, [w_ih, w_hh, b_ih, b_hh], reverse))


def _stack(node: Node, names: list[str], importer: Any) -> Any:
    """aten.lstm(x, (h, c), weights, bias, layers, dropout, train, bidirectional, batch_first), layer by layer."""
    emit = importer.block_builder.emit
    x, (h, c), weights, bias, _layers, _dropout, _train, _bidirectional, batch_first = importer.retrieve_args(
        node
    )
    each = 4 if bias else 2
    if len(weights) != each * len(names):
        raise UnsupportedModel(
            _where(node), "proj_size = 0", "a projection", "Put an nn.Linear after the LSTM."
        )
    if batch_first:
        x = emit(relax.op.permute_dims(x, [1, 0, 2]))
    outputs: list[Any] = []
    hs, cs = [], []
    for index, name in enumerate(names):
        reverse = name.endswith("_reverse")
        h0, c0 = (emit(relax.op.take(s, relax.const(index, "int64"), axis=0, mode="fast")) for s in (h, c))
        call = emit(lstm_call(name, x, h0, c0, list(weights[each * index : each * (index + 1)]), reverse))
        outputs.append(emit(relax.TupleGetItem(call, 0)))
        hs.append(emit(relax.TupleGetItem(call, 1)))
        cs.append(emit(relax.TupleGetItem(call, 2)))
        if index + 1 == len(names) or not names[index + 1].endswith("_reverse"):
            x = emit(relax.op.concat(outputs, axis=2)) if len(outputs) > 1 else outputs[0]
            outputs = []
    h, c = (emit(relax.op.stack(s, axis=0)) for s in (hs, cs))
    return relax.Tuple([emit(relax.op.permute_dims(x, [1, 0, 2])) if batch_first else x, h, c])


def _select(node: Node, importer: Any) -> Any:
    x, axis, index = importer.retrieve_args(node)
    # TVM's importer takes x[-1] in mode "fast", which reads the memory before x.
    return importer.block_builder.emit(relax.op.take(x, relax.const(index, "int64"), axis=axis, mode="wrap"))


def _embedding(node: Node, importer: Any) -> Any:
    table, indices = importer.retrieve_args(node)[:2]
    # TVM's importer looks up in mode "fast", where an index beyond the table is a segmentation fault.
    return importer.block_builder.emit(relax.op.take(table, indices, axis=0, mode="clip"))


def _repeat(node: Node, importer: Any) -> Any:
    emit = importer.block_builder.emit
    x, repeats = importer.retrieve_args(node)
    shape = [*[1] * (len(repeats) - len(x.ty.shape)), *x.ty.shape]
    if len(shape) > len(x.ty.shape):
        x = emit(relax.op.reshape(x, relax.ShapeExpr(shape)))
    # TVM's importer tiles by numbers only; an axis of size 1 is repeated by a broadcast, as often as a symbol says.
    single = [isinstance(size, tirx.IntImm | int) and int(size) == 1 for size in shape]
    tiles = [1 if one else times for one, times in zip(single, repeats, strict=True)]
    if any(times != 1 for times in tiles):
        x = emit(relax.op.tile(x, tiles))
    wanted = [
        times if one else size for one, times, size in zip(single, repeats, list(x.ty.shape), strict=True)
    ]
    return emit(relax.op.broadcast_to(x, relax.ShapeExpr(wanted)))


def _extreme(node: Node, importer: Any, reduce: Any) -> Any:
    """amax(x, dims, keepdim)"""
    x, axes, keep = (*importer.retrieve_args(node), None, None)[:3]
    return importer.block_builder.emit(reduce(x, list(axes or []) or None, bool(keep)))


def _largest(node: Node, importer: Any) -> Any:
    """max(x, dim): the largest value and its index."""
    x, axis, keep = (*importer.retrieve_args(node), False)[:3]
    if axis in (-1, len(x.ty.shape) - 1):  # a head's kernel finds both at once
        return importer._max_dim(node)
    # TVM's importer takes topk, which sorts, in a library that a deployed module does not have.
    largest = (relax.op.max(x, [axis], keep), relax.op.argmax(x, axis, keep))
    return importer.block_builder.emit(relax.Tuple([importer.block_builder.emit(v) for v in largest]))


def _check(node: Node, known: set[str]) -> None:
    if node.op != "call_function" or is_stack(node) or node.target is torch.ops.doping.lstm.default:
        return
    name = getattr(node.target, "__name__", str(node.target))
    if node.target in _RECURRENT or name not in known:
        raise UnsupportedModel(
            _where(node), "an operator that TVM's importer knows", "one that it does not", _remedy(node)
        )


def _where(node: Node) -> str:
    path, kind = module_of(node)
    return f"operator {node.target} in module {path or '(the model itself)'} ({kind or 'unknown class'})"


def _remedy(node: Node | None) -> str:
    if node is not None and node.target in _RECURRENT:
        return "Use an nn.LSTM on padded tensors in its place."
    return "Write it with other operators, or leave it out of the model that is compiled."


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
