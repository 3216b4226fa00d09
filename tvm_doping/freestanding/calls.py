"""A Relax function as what a C program can run: calls of kernels, in order, on buffers of known sizes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm_doping._tvm import bindings, op_name, relax, tirx, tvm
from tvm_doping.errors import UnsupportedModel
from tvm_doping.frontend import Signature
from tvm_doping.kernels.trees import found, replaced
from tvm_doping.passes import REPORT


@dataclass(frozen=True, kw_only=True, eq=False)
class Value:
    """A tensor that calls read or write.

    kind    "input", "state", "weight" or "temporary" (which outputs and new states are too);
    shape   sizes, and expressions of T as text; bytes: for the largest T.
    """

    kind: str
    name: str
    dtype: str
    shape: tuple[int | str, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Call:
    """kernel(*reads, *writes): the name of a kernel and its arguments."""

    kernel: str
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]


@dataclass(kw_only=True)
class Program:
    """What `main` does for a fixed batch and any number of steps T up to `steps`.

    kernels  name -> TensorIR function of buffers alone, whose only free variable is T; titles: name -> what it computes;
    inputs, state, weights in the order of main's parameters, outputs and new_state in that of its results.
    """

    batch: int
    steps: int
    inputs: list[Value] = field(default_factory=list)
    state: list[Value] = field(default_factory=list)
    weights: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    new_state: list[Value] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    kernels: dict[str, Any] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)


def program(mod: Any, signature: Signature, weights: list[str], *, batch: int, steps: int) -> Program:
    """The calls that the function `main` of a compiled module stands for; weights: their names.

    Relax's virtual machine is not needed for what is straight: calls of kernels, tuples, views. Anything else, a branch or a
    function of another library, is an UnsupportedModel that names the operator.
    """
    return _Reader(mod, signature, weights, batch, steps).read()


class _Reader:
    def __init__(self, mod: Any, signature: Signature, weights: list[str], batch: int, steps: int) -> None:
        self.mod, self.signature, self.names = mod, signature, weights
        self.T = tirx.Var("T", "int64")
        self.program = Program(batch=batch, steps=steps)
        self.symbols: dict[Any, Any] = {}  # main's variables of sizes -> T, or the batch
        self.values: dict[Any, Any] = {}  # Relax variable -> Value, or a list of them
        self.known: dict[tuple[str, ...], str] = {}  # (function, shapes) -> kernel
        self.weights: dict[int, Value] = {}

    def read(self) -> Program:
        main, p, s = self.mod["main"], self.program, self.signature
        *params, packed = main.params
        for spec, param in zip((*s.inputs, *s.state), params, strict=True):
            for dim, size in zip(spec.shape, param.ty.shape, strict=True):
                if isinstance(dim, str):
                    self.symbols[size] = self.T if dim == "T" else tirx.const(p.batch, "int64")
        for group, specs, kind in ((p.inputs, s.inputs, "input"), (p.state, s.state, "state")):
            for spec in specs:
                param = params[len(p.inputs) + len(p.state)]
                self.values[param] = self._value(kind, spec.name, param.ty)
                group.append(self.values[param])
        for binding in bindings(main):
            if not isinstance(binding, relax.VarBinding):
                raise _refusal(type(binding).__name__)
            value = binding.value
            if op_name(value) == "relax.call_pure_packed" and value.args[1].same_as(packed):
                self.values[binding.var] = self._weight(int(value.args[2].value), binding.var.ty)
            else:
                self.values[binding.var] = self._expression(value, binding.var.name)
        results = self._expression(main.body.body, "main")
        count = len(s.outputs)
        p.outputs, p.new_state = list(results[:count]), list(results[count:])
        p.weights = [self.weights[index] for index in sorted(self.weights)]
        return p

    def _expression(self, value: Any, name: str) -> Any:
        if isinstance(value, relax.Var):
            return self.values[value]
        if isinstance(value, relax.Tuple):
            return [self._expression(part, name) for part in value.fields]
        if isinstance(value, relax.TupleGetItem):
            return self._expression(value.tuple_value, name)[int(value.index)]
        if op_name(value) == "relax.call_tir":
            return self._call(value, name)
        raise _refusal(_described(value))

    def _weight(self, index: int, ty: Any) -> Value:
        if index not in self.weights:
            self.weights[index] = self._value("weight", self.names[index], ty)
        return self.weights[index]

    def _call(self, call: Any, name: str) -> Any:
        if len(call.args) > 2:
            raise _refusal(f"{call.args[0].name_hint} with sizes as arguments")
        function = self.mod[call.args[0]]
        reads = [self._expression(arg, name) for arg in call.args[1].fields]
        several = isinstance(call.ty, relax.TupleType)
        types = list(call.ty.fields) if several else [call.ty]
        if not several and len(reads) == 1 and relax.analysis.has_reshape_pattern(function):
            (whole,) = reads  # the same memory in another shape
            if whole.kind != "state":
                return whole
        shapes = [self._sizes(arg.ty) for arg in call.args[1].fields] + [self._sizes(ty) for ty in types]
        kernel = self._kernel(call.args[0], function, shapes)
        writes = [
            self._value("temporary", f"{name}_{i}" if several else name, ty) for i, ty in enumerate(types)
        ]
        self.program.calls.append(Call(kernel=kernel, reads=tuple(reads), writes=tuple(writes)))
        return writes if several else writes[0]

    def _kernel(self, gv: Any, function: Any, shapes: list[list[Any]]) -> str:
        """The name of the function for arguments of these shapes: one for each, since sizes become constants in it."""
        key = (gv.name_hint, *map(str, shapes))
        if key not in self.known:
            report = function.attrs.get(REPORT) if function.attrs else None
            title = json.loads(report)["name"] if report else gv.name_hint
            base = re.sub(r"\W", "_", title).strip("_")
            taken = self.program.kernels
            name = next(n for n in (base, *(f"{base}_{i}" for i in range(2, 10_000))) if n not in taken)
            # specialize() takes new sizes in place of variables only: what is computed from these follows
            buffers = {
                param: tirx.decl_buffer(
                    [
                        size if isinstance(old, tirx.Var) else old
                        for size, old in zip(shape, param.ty.shape, strict=True)
                    ],
                    str(param.dtype),
                    param.name,
                )
                for param, shape in zip(function.params, shapes, strict=True)
            }
            self.known[key] = name
            self.program.kernels[name] = function.specialize(buffers)
            self.program.titles[name] = title
        return self.known[key]

    def _sizes(self, ty: Any) -> list[Any]:
        """The shape of a tensor type in terms of T."""
        sizes = []
        for size in ty.shape:
            for var in found(size, tirx.Var):
                size = replaced(size, var, self.symbols[var])
            sizes.append(tvm.sym.Analyzer().simplify(size))
        return sizes

    def _value(self, kind: str, name: str, ty: Any) -> Value:
        sizes = self._sizes(ty)
        dtype = str(ty.dtype)
        return Value(
            kind=kind,
            name=name,
            dtype=dtype,
            shape=tuple(int(s) if isinstance(s, tirx.IntImm) else _text(s) for s in sizes),
            bytes=math.prod(largest(s, self.program.steps) for s in sizes) * itemsize(dtype),
        )


def _text(size: Any) -> str:
    """A size as C writes it; TVM's printer renames a variable T, which is its own word, and writes types."""
    return re.sub(r"T\.int64\((\d+)\)", r"\1", str(size)).replace("T_1", "T")


def largest(size: Any, steps: int, binds: Sequence[Any] = ()) -> int:
    """The value of an expression of T, and of what `binds` (TensorIR's Bind) name, for the most steps.

    Sizes grow with T: none is a difference from it.
    """
    while names := found(size, tirx.Var):
        for var in names:
            bound = next((bind.value for bind in binds if bind.var.same_as(var)), None)
            size = replaced(size, var, tirx.const(steps, str(var.ty.dtype)) if bound is None else bound)
    return int(tvm.sym.Analyzer().simplify(size))


def itemsize(dtype: str) -> int:
    """Bytes of one value (of a vector type: of all its lanes)."""
    kind = tvm.DataType(dtype)
    return (kind.bits * kind.lanes + 7) // 8


def _described(value: Any) -> str:
    name = op_name(value)
    if name in ("relax.call_dps_packed", "relax.call_pure_packed"):
        return str(getattr(value.args[0], "global_symbol", name))
    return name or type(value).__name__


def _refusal(operator: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"operator {operator}",
        "code that needs no runtime, for a program in C",
        "a call into TVM's runtime or another library, or a branch",
        "Write the model without it, or compile it for TVM's runtime: --runtime tvm.",
    )
