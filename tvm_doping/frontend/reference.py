"""The imported model computed by PyTorch, any state of its LSTMs given: what compiled code is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, OutputSpec, TensorArgument
from torch.fx import Interpreter, Node

from tvm_doping.frontend.graph import is_layer, is_stack, layer_names, scores_of
from tvm_doping.frontend.signature import Signature

Arrays = dict[str, np.ndarray]


class Reference:
    """reference(arrays) runs the program on arrays by the names of the signature; a lifted state that is missing is zero.

    Returns the outputs, and the new state, by name. `run` also returns the scores (..., V) that outputs which are indices were
    chosen by, by the name of the output.
    """

    def __init__(
        self, program: ExportedProgram, given: tuple[str, ...], lifted: tuple[str, ...], signature: Signature
    ) -> None:
        self.program, self.given, self.lifted, self.signature = program, given, lifted, signature

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, Arrays]:
        return self.run(arrays)[:2]

    def run(self, arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, Arrays, Arrays]:
        """(outputs, new state, scores)."""
        nodes = {node.name: node for node in self.program.graph.nodes}
        specs = self.program.graph_signature.output_specs
        returned = [
            nodes.get(s.arg.name) for s in specs if s.kind is OutputKind.USER_OUTPUT and _is_tensor(s)
        ]
        scores = {
            tensor.name: node
            for tensor, result in zip(self.signature.outputs, returned, strict=False)
            if (node := scores_of(result)) is not None
        }
        runner = _Runner(
            self.program,
            {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()},
            self.lifted,
            frozenset(scores.values()),
        )
        with torch.no_grad():
            results = runner.run(
                *_arguments(self.program, [torch.from_numpy(np.array(arrays[name])) for name in self.given])
            )
        kinds = [spec.kind for spec in self.program.graph_signature.output_specs]
        mine = [
            value
            for value, kind in zip(results, kinds, strict=True)
            if kind is OutputKind.USER_OUTPUT and value is not None
        ]
        outputs = dict(zip((t.name for t in self.signature.outputs), mine, strict=False))
        explicit = [t.name for t in self.signature.state if t.name in self.given]
        state = {**dict(zip(explicit, mine[len(outputs) :], strict=True)), **runner.final}
        kept = {name: runner.kept[node] for name, node in scores.items()}
        return _arrays(outputs), _arrays(state), _arrays(kept)


def _is_tensor(spec: OutputSpec) -> bool:
    return isinstance(spec.arg, TensorArgument)


def _arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array(value.detach().numpy(), order="C") for name, value in tensors.items()}


def _arguments(program: ExportedProgram, inputs: list[Any]) -> list[Any]:
    """Parameters, buffers, constants and the user's inputs, in the order of the graph's placeholders."""
    remaining, values = iter(inputs), []
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            node = next(
                n
                for n in program.graph.nodes
                if n.op == "placeholder" and n.name == getattr(spec.arg, "name", "")
            )
            values.append(next(remaining) if isinstance(node.meta.get("val"), torch.Tensor) else None)
        elif spec.target in program.state_dict:
            values.append(program.state_dict[spec.target])
        else:
            values.append(program.constants[spec.target])
    return values


class _Runner(Interpreter):
    """Runs a graph with the initial states of some LSTM layers replaced, and keeps their final ones, and what `keep` names."""

    def __init__(
        self,
        program: ExportedProgram,
        state: Mapping[str, torch.Tensor],
        lifted: tuple[str, ...],
        keep: frozenset[Node],
    ) -> None:
        super().__init__(program.graph_module)
        self.state, self.lifted, self.keep = state, lifted, keep
        self.kept: dict[Node, torch.Tensor] = {}
        self.names = layer_names(program.graph)
        self.final: dict[str, torch.Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if not (is_layer(n) or is_stack(n)):
            value = super().run_node(n)
            if n in self.keep:
                self.kept[n] = value
            return value
        arguments, kwargs = self.fetch_args_kwargs_from_env(n)
        args, names = list(arguments), self.names[n]
        if is_layer(n):
            args[1:3] = [self._initial(names[0], key, args[1 + i]) for i, key in enumerate("hc")]
        else:
            args[1] = [
                torch.stack([self._initial(name, key, whole[i]) for i, name in enumerate(names)])
                for key, whole in zip("hc", args[1], strict=True)
            ]
        result = n.target(*args, **kwargs)  # type: ignore[operator]
        for i, name in enumerate(names):
            if name in self.lifted:
                h, c = result[1:3]
                self.final |= {
                    f"{name}.h": h if is_layer(n) else h[i],
                    f"{name}.c": c if is_layer(n) else c[i],
                }
        return result

    def _initial(self, name: str, key: str, default: torch.Tensor) -> torch.Tensor:
        return self.state.get(f"{name}.{key}", default) if name in self.lifted else default
