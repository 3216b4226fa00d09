"""Reading an exported graph: its LSTMs and their names, what its inputs are used for."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten
# Operators that pass on the elements of their first argument.
_VIEWS = {
    operator.getitem, aten.select.int, aten.slice.Tensor, aten.view.default, aten.reshape.default, aten.unsqueeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.permute.default, aten.transpose.int, aten.unbind.int,
    aten.split.Tensor, aten.split_with_sizes.default, aten.clone.default, aten.alias.default, aten.contiguous.default,
    aten._to_copy.default, aten.chunk.default, aten.narrow.default, aten.detach.default,
}  # fmt: skip
_JOINS = {aten.cat.default, aten.stack.default}
_SIZES = {aten.sym_size.int, aten._assert_tensor_metadata.default}


def is_layer(node: Node) -> bool:
    """One layer in one direction, as `swap` makes it."""
    return node.op == "call_function" and node.target is torch.ops.doping.lstm.default


def is_stack(node: Node) -> bool:
    """A whole nn.LSTM, as PyTorch exports it."""
    return node.op == "call_function" and node.target is aten.lstm.input


def lstm_nodes(graph: Graph) -> list[Node]:
    """All LSTMs of the graph, in order."""
    return [node for node in graph.nodes if is_layer(node) or is_stack(node)]


def layer_names(graph: Graph) -> dict[Node, list[str]]:
    """LSTM -> the names of its layers and directions, in PyTorch's order of their states: "rnn.l0", "rnn.l0_reverse", ..."""
    names: dict[Node, list[str]] = {}
    seen: dict[str, int] = {}
    for node in lstm_nodes(graph):
        if is_layer(node):
            names[node] = [str(node.args[8])]
            continue
        prefix = module_of(node)[0] or "lstm"
        seen[prefix] = seen.get(prefix, 0) + 1
        if seen[prefix] > 1:
            prefix = f"{prefix}.call{seen[prefix]}"
        suffixes = ("", "_reverse") if node.args[7] else ("",)
        names[node] = [
            f"{prefix}.l{layer}{suffix}" for layer in range(int(str(node.args[4]))) for suffix in suffixes
        ]
    return names


def module_of(node: Node) -> tuple[str, str]:
    """(path, class) of the module whose forward made the node; ("", "") where the graph does not say."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", ""
    path, kind = list(stack.values())[-1]
    if "_empty_nn_module_stack" in str(path):  # torch.export's own placeholder
        return "", ""
    return str(path), (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]


def state_roles(node: Node) -> set[str]:
    """What an input is used for: {"h"}, {"c"} if only as that initial state of LSTMs; anything else adds "other"."""
    return {role for user, position in _uses(node) for role in _roles(user, position)}


def result_roles(node: object) -> set[str]:
    """What a result is: {"h"}, {"c"} if only that final state of LSTMs; anything else adds "other"."""
    if not isinstance(node, Node) or not node.args:
        return {"other"}
    source = node.args[0]
    if (
        node.target is operator.getitem
        and isinstance(source, Node)
        and (is_layer(source) or is_stack(source))
    ):
        return {("other", "h", "c")[int(str(node.args[1]))]}
    if node.target in _JOINS and isinstance(source, list | tuple):
        return {role for part in source for role in result_roles(part)}
    return result_roles(source) if node.target in _VIEWS else {"other"}


def scores_of(node: object) -> Node | None:
    """Of a result that is indices from an argmax or a topk over the last axis: the node of the scores; None for others."""
    if not isinstance(node, Node) or not node.args or not isinstance(node.args[0], Node):
        return None
    source = node.args[0]
    pair = node.target is operator.getitem and source.target in (aten.topk.default, aten.max.dim)
    if not pair and node.target is not aten.argmax.default:
        return scores_of(source) if node.target in _VIEWS else None
    if pair and node.args[1] != 1:
        return None
    chosen = source if pair else node
    scores, position = chosen.args[0], 2 if chosen.target is aten.topk.default else 1
    axis = (
        chosen.args[position]
        if len(chosen.args) > position
        else chosen.kwargs.get("dim", -1 if pair else None)
    )
    assert isinstance(scores, Node)
    return scores if axis in (-1, scores.meta["val"].dim() - 1) else None


def table_rows(node: Node) -> int | None:
    """The rows of the smallest embedding that an integer input indexes; None if it indexes none."""
    rows = [
        int(user.args[0].meta["val"].shape[0])
        for user, position in _uses(node)
        if user.target is aten.embedding.default and position == 1 and isinstance(user.args[0], Node)
    ]
    return min(rows, default=None)


def _roles(user: Node, position: int) -> set[str]:
    if is_layer(user) and position in (1, 2):
        return {"h" if position == 1 else "c"}
    if is_stack(user) and position < 0:
        return {"h" if position == -1 else "c"}
    return {"other"}


def _uses(node: Node) -> Iterator[tuple[Node, int]]:
    """(user, position of the argument) at the ends of all chains of views; -1 and -2 are the h and c of an aten.lstm."""
    for user in node.users:
        if user.target in _SIZES:
            continue
        if user.target in _VIEWS and user.args and user.args[0] is node:
            yield from _uses(user)
            continue
        for position, argument in enumerate(user.args):
            if argument is node:
                yield user, position
            elif isinstance(argument, list | tuple) and node in argument:
                yield user, -1 - list(argument).index(node) if is_stack(user) and position == 1 else position
