"""A trained PyTorch model as a Relax module that knows its inputs, state and outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor as TorchTensor
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from tvm_doping._tvm import relax, replace_main, tirx
from tvm_doping.errors import InvalidInput, UnsupportedModel
from tvm_doping.frontend.convert import convert, decompose
from tvm_doping.frontend.example import example_of
from tvm_doping.frontend.graph import layer_names, result_roles, state_roles, table_rows
from tvm_doping.frontend.program import export, symbols
from tvm_doping.frontend.reference import Reference
from tvm_doping.frontend.signature import Signature, Tensor
from tvm_doping.frontend.state import Lifted, lift_state
from tvm_doping.frontend.streaming import why_no_stream
from tvm_doping.frontend.swap import check_modules


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A model in Relax.

    mod        `main(*inputs, *state)` returns the tuple (*outputs, *new state); T and N are symbols; weights are constants;
    signature  what these are;
    names      handle of a constant's tensor -> PyTorch's name of the parameter;
    example    inputs by name, float32 or int64 as the signature says;
    reference  the same model computed by PyTorch;
    layers     the LSTM layers by name, in order.
    """

    mod: Any
    signature: Signature
    names: dict[int, str]
    example: dict[str, np.ndarray]
    reference: Reference
    layers: tuple[str, ...] = field(default=())


def import_model(
    model: nn.Module | ExportedProgram, example: Any = None, *, tolerance: float = 1e-5
) -> Imported:
    """The model, whose own modules stay as they are.

    nn.LSTM in all forms but proj_size and packed sequences becomes one `doping.lstm` a layer and direction, with symbolic T and
    N. A state given to the model and returned by it as its last inputs and outputs is recognised; an LSTM that starts from
    zero gets its state lifted to inputs and outputs (`lift_state`), if the model then is a stream (`why_no_stream`); one that is
    none starts every run from zero, as PyTorch does.

    example: inputs for tracing (default: `example_of`); tolerance: what is rounding, where pieces of a sequence and all of it
    are compared.

    Raises UnsupportedModel, naming module or operator and its path, and InvalidInput for an example that does not fit.
    """
    if isinstance(model, ExportedProgram):
        program, inputs = model, example_of_program(model, example)
    elif isinstance(model, nn.Module):
        check_modules(model)  # before an example is asked for that would be of no use
        given, axes = example_of(model) if example is None else (example, None)
        program, inputs = export(model, _distinct(given if isinstance(given, tuple) else (given,)), axes)
    else:
        raise InvalidInput(
            "model", "an nn.Module or an ExportedProgram", type(model).__name__, "Pass the model itself."
        )
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if leaf is not None]
    if not all(isinstance(leaf, TorchTensor) for leaf in leaves):
        odd = next(type(leaf).__name__ for leaf in leaves if not isinstance(leaf, TorchTensor))
        raise UnsupportedModel("an input of the model", "a tensor", odd, "Make it an attribute of the model.")
    roles = symbols(program)
    program = decompose(program)
    mod, names = convert(program)
    mod = _rename_symbols(mod, roles)
    explicit, certain = _explicit_state(program, mod)
    layers = [name for group in layer_names(program.graph).values() for name in group]

    def imported(explicit: list[str], lifted: Lifted, no_stream: str = "") -> Imported:
        signature = _signature(program, lifted.mod, explicit, lifted.names, no_stream)
        order = tuple(t.name for t in (*signature.inputs, *signature.state))[: len(leaves)]
        return Imported(
            mod=lifted.mod,
            signature=signature,
            names=names,
            example={name: leaf.detach().numpy().copy() for name, leaf in zip(order, leaves, strict=True)},
            reference=Reference(program, order, tuple(lifted.names), signature),
            layers=tuple(layers),
        )

    lifted = lift_state(mod)
    stream = imported(explicit, lifted)
    why = why_no_stream(stream.signature, stream.reference, stream.example, layers, tolerance)
    if not why:
        return stream
    # A program of a fixed number of steps is run again and again over a longer sequence: its state is kept.
    fixed = stream.signature.time_axis is None and not any(name.endswith("_reverse") for name in layers)
    return imported(explicit if certain else [], lifted if fixed else Lifted(mod), why)


def example_of_program(program: ExportedProgram, example: Any) -> tuple[Any, ...]:
    """The user's example, else the one that the program was exported with."""
    if example is not None:
        return example if isinstance(example, tuple) else (example,)
    if program.example_inputs is None:
        raise InvalidInput("example", "inputs of the ExportedProgram", "none", "Pass example=(inputs, ...).")
    args, kwargs = program.example_inputs
    return (*args, *kwargs.values())


def _rename_symbols(mod: Any, roles: dict[str, str]) -> Any:
    main = mod["main"]
    present = {var.name for var in relax.analysis.defined_symbolic_vars(main)}
    main = main.bind_symbolic_vars(
        {old: tirx.Var(new, "int64") for old, new in roles.items() if old in present}
    )
    # torch.export says T >= 2 where it means "not the constant 1"; an upper bound would make TVM allocate for it ahead.
    main = main.without_attr("tir_var_lower_bound").without_attr("tir_var_upper_bound")
    return replace_main(mod, main)


def _distinct(example: tuple[Any, ...]) -> tuple[Any, ...]:
    """The example with a copy of each tensor that it holds more than once: torch.export takes the same tensor for one input."""
    leaves, spec = pytree.tree_flatten(example)
    once = {id(leaf): i for i, leaf in reversed(list(enumerate(leaves)))}
    return pytree.tree_unflatten(
        [
            leaf.clone() if isinstance(leaf, TorchTensor) and once[id(leaf)] != i else leaf
            for i, leaf in enumerate(leaves)
        ],
        spec,
    )


def _explicit_state(program: Any, mod: Any) -> tuple[list[str], bool]:
    """(names of the last inputs and outputs that are state, whether the graph proves it): inputs used only as initial state of
    LSTMs, matched by outputs of the same shape.

    Outputs that are final states as they are prove it; others, as a clamped state, may be state: a trial shows (`why_no_stream`).
    UnsupportedModel where h and c return in another order than they were given.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    params, results = list(mod["main"].params), list(mod["main"].ret_ty.fields)
    returned = [nodes.get(name) for name in program.graph_signature.user_outputs if name is not None]
    given: list[str] = []
    back: list[str] = []
    for param, result, node in zip(params[:0:-1], results[:0:-1], returned[:0:-1], strict=False):
        roles = state_roles(nodes[param.name]) if param.name in nodes else set()
        if len(roles) != 1 or "other" in roles or not _same_type(param.ty, result):
            break
        given.insert(0, roles.pop())
        back.insert(0, "".join(sorted(result_roles(node))))
    count = len(given)
    if given != back and sorted(given) == sorted(back):
        raise UnsupportedModel(
            f"the last {count} outputs of the model, taken as its new state",
            f"the state in the order in which it is given, {', '.join(given)}",
            ", ".join(back),
            "Return it in the order of the model's inputs.",
        )
    if any({a, b} == {"h", "c"} for a, b in zip(given, back, strict=True)):
        return [], True
    unique = len(set(given)) == count
    return given if unique else [p.name for p in params[len(params) - count :]], given == back


def _same_type(a: Any, b: Any) -> bool:
    return str(a) == str(b)


def _signature(program: Any, mod: Any, explicit: list[str], lifted: list[str], no_stream: str) -> Signature:
    main = mod["main"]
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    state_names = [*explicit, *(f"{name}.{key}" for name in lifted for key in "hc")]
    params, results = list(main.params), list(main.ret_ty.fields)
    outputs = len(results) - len(state_names)
    inputs = len(params) - len(state_names)
    # an explicit state and a lifted one together: the model's own outputs lie between its explicit state and the lifted one
    result_names = ["output"] if outputs == 1 else [f"output_{i}" for i in range(outputs)]
    return Signature(
        inputs=tuple(_tensor(p.name, p.ty, table_rows(nodes[p.name])) for p in params[:inputs]),
        state=tuple(_tensor(name, p.ty) for name, p in zip(state_names, params[inputs:], strict=True)),
        outputs=tuple(_tensor(name, ty) for name, ty in zip(result_names, results[:outputs], strict=True)),
        no_stream=no_stream,
    )


def _tensor(name: str, ty: Any, below: int | None = None) -> Tensor:
    if getattr(ty, "shape", None) is None:
        raise UnsupportedModel(
            f"{name!r} of the model",
            "a shape that follows from those of the inputs",
            str(ty),
            "Take time steps away outside of the model: return all of them.",
        )
    shape = tuple(
        int(d) if isinstance(d, tirx.IntImm) else str(d.name if isinstance(d, tirx.Var) else d)
        for d in ty.shape
    )
    return Tensor(name=name, shape=shape, dtype=str(ty.dtype), below=below)
