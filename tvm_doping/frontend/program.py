"""A PyTorch model as an ExportedProgram whose time steps and batch are symbols."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.fx.experimental import _config
from torch.utils import _pytree as pytree

from tvm_doping.errors import DopingError, InvalidInput, UnsupportedModel
from tvm_doping.frontend.graph import lstm_nodes
from tvm_doping.frontend.signature import BATCH, TIME
from tvm_doping.frontend.swap import describe, swapped

Example = tuple[Any, ...]
_SYMBOLIC: Any = _config
# Sizes for the axes of an example that are 1, which torch.export would take for constants.
STEPS, STREAMS = 5, 3


def export(
    model: nn.Module, example: Example, known: list[set[int]] | None = None
) -> tuple[ExportedProgram, Example]:
    """The program, and the example it was made from: that given, its symbolic axes enlarged where they were 1.

    known: for each tensor of the example, the axes that vary; None to find those that are time or batch, by a first export.

    T is whatever axis arrives at the LSTMs as time, N what arrives there as batch; all other axes are constants, unless `known`
    says that they vary. Without an LSTM, N is the first axis of an input that is not fixed by what is done with it.

    Raises UnsupportedModel, or InvalidInput if the model fails on the example.
    """
    _try(model, example)
    if known is not None:
        return _export(model, example, known), example
    leaves, spec = pytree.tree_flatten(example)
    everything = [set(range(leaf.dim())) if isinstance(leaf, Tensor) else set() for leaf in leaves]
    program = _export(model, example, everything)
    roles = _time_and_batch(program)
    axes = _axes(program, leaves, roles)
    if [set(names) for names in axes] == everything and not _has_ones(leaves, axes):
        return program, example
    leaves = [
        _enlarged(leaf, names) if isinstance(leaf, Tensor) else leaf
        for leaf, names in zip(leaves, axes, strict=True)
    ]
    example = pytree.tree_unflatten(leaves, spec)
    return _export(model, example, [set(names) for names in axes]), example


def symbols(program: ExportedProgram) -> dict[str, str]:
    """The program's symbols that stand for time or batch -> "T" or "N" (further ones: "T1", "N1", ...).

    What else varies, such as the length of a sequence that no LSTM reads (an attention's memory), is time too.
    """
    found = _time_and_batch(program)
    for size in _sizes(program):
        _add(found, size, TIME)
    return found


def _time_and_batch(program: ExportedProgram) -> dict[str, str]:
    """Of `symbols`, those that arrive at the LSTMs; without any, N alone."""
    found: dict[str, str] = {}
    for steps, batch in _lstm_sizes(program):
        _add(found, steps, TIME)
        _add(found, batch, BATCH)
    if not found:
        # a SymInt may have come out as a number
        varying = (s for s in _sizes(program) if isinstance(s, torch.SymInt) and s.node.expr.free_symbols)
        _add(found, next(varying, None), BATCH)
    return found


def _add(found: dict[str, str], size: object, role: str) -> None:
    """Name the symbol of a size, if it is one that has no name yet."""
    names = sorted(map(str, size.node.expr.free_symbols)) if isinstance(size, torch.SymInt) else []
    if len(names) == 1 and names[0] not in found:
        taken = sum(name.startswith(role) for name in found.values())
        found[names[0]] = role + (str(taken) if taken else "")


def _sizes(program: ExportedProgram) -> Iterator[object]:
    """The sizes of all inputs."""
    return (size for value in _inputs(program) if isinstance(value, Tensor) for size in value.shape)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that torch.export gives of its own doings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _lstm_sizes(program: ExportedProgram) -> Iterator[tuple[object, object]]:
    """(T, N) of each LSTM."""
    for node in lstm_nodes(program.graph):
        argument = node.args[0]
        assert isinstance(argument, Node)
        shape = argument.meta["val"].shape
        batch_first = len(node.args) == 9 and node.target is torch.ops.aten.lstm.input and node.args[8]
        yield (shape[1], shape[0]) if batch_first else (shape[0], shape[1])


def _try(model: nn.Module, example: Example) -> None:
    """Run the model: what it does with the example must work before anything can be said of its export."""
    with swapped(model), torch.no_grad():
        try:
            model(*example)
        except DopingError:
            raise
        except Exception as error:
            raise InvalidInput(
                "example",
                f"inputs that {describe('', model)} runs on",
                f"{type(error).__name__}: {error}",
                "Pass example=(inputs, ...).",
            ) from error


def _export(model: nn.Module, example: Example, axes: list[set[int]]) -> ExportedProgram:
    leaves, spec = pytree.tree_flatten(example)
    dims = [
        dict.fromkeys(names, Dim.AUTO) if isinstance(leaf, Tensor) else None
        for leaf, names in zip(leaves, axes, strict=True)
    ]
    # Without backed_size_oblivious an axis of size 1 in the example becomes the constant 1.
    oblivious = _has_ones(leaves, axes)
    with swapped(model), torch.no_grad(), quiet(), _SYMBOLIC.patch(backed_size_oblivious=oblivious):
        try:
            return torch.export.export(model, example, dynamic_shapes=pytree.tree_unflatten(dims, spec))
        except DopingError:
            raise
        except Exception as error:
            raise UnsupportedModel(
                describe("", model),
                "a forward that torch.export can trace",
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}",
                "Remove what depends on the values of tensors, or pass an ExportedProgram.",
            ) from error


def _inputs(program: ExportedProgram) -> list[Any]:
    """The fake tensors of the user's inputs, in order."""
    wanted = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return [
        nodes[name].meta.get("val") if isinstance(name, str) and name in nodes else None for name in wanted
    ]


def _axes(program: ExportedProgram, leaves: list[Any], roles: dict[str, str]) -> list[dict[int, str]]:
    """For each input, its axes that are T or N."""
    axes: list[dict[int, str]] = []
    for leaf, value in zip(leaves, _inputs(program), strict=True):
        if not isinstance(leaf, Tensor) or not isinstance(value, Tensor):
            axes.append({})
            continue
        named = {axis: _role(size, roles) for axis, size in enumerate(value.shape)}
        axes.append({axis: role for axis, role in named.items() if role})
    return axes


def _role(size: object, roles: dict[str, str]) -> str | None:
    return roles.get(str(size.node.expr)) if isinstance(size, torch.SymInt) else None


def _has_ones(leaves: list[Any], axes: list[Any]) -> bool:
    return any(leaf.shape[axis] == 1 for leaf, names in zip(leaves, axes, strict=True) for axis in names)


def _enlarged(leaf: Tensor, names: Any) -> Tensor:
    sizes: Callable[[str], int] = lambda role: STEPS if role.startswith(TIME) else STREAMS  # noqa: E731
    times = [
        sizes(names[axis]) if axis in names and leaf.shape[axis] == 1 else 1 for axis in range(leaf.dim())
    ]
    return leaf.repeat(times) if max(times, default=1) > 1 else leaf
