"""The TVM names that move between releases, every TVM quirk worked around, and Relax functions as lists of bindings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.ir import StringImm
from tvm.ir.expr import GenericConst
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

__all__ = [
    "GenericConst",
    "IRBuilder",
    "StringImm",
    "T",
    "array_of",
    "bindings",
    "constant",
    "count_uses",
    "definitions",
    "dps_call",
    "handle",
    "op_name",
    "out_types",
    "rebuild",
    "relax",
    "replace_main",
    "te",
    "tensor",
    "text_of",
    "tirx",
    "tvm",
]

# (a binding's variable, its value) -> what to bind in its place: any (variable, value) pairs, then the variable's new value;
# None keeps the binding.
Visit = Callable[[Any, Any], list[Any] | None]


def constant(array: np.ndarray) -> Any:
    """A Relax constant of exactly this dtype and value."""
    # relax.const(array) turns int64 into int32 and float64 into float32; a TVM tensor it keeps.
    return relax.const(tensor(array))


def array_of(expr: Any) -> np.ndarray | None:
    """The value of a Relax constant; None for any other expression."""
    return expr.value.numpy() if isinstance(expr, GenericConst) and hasattr(expr.value, "numpy") else None


def handle(value: Any) -> int:
    """The identity of a TVM object: two Python wrappers of the same tensor have the same."""
    return int(value.__chandle__())


def tensor(array: np.ndarray) -> Any:
    """A copy of the array as a TVM tensor."""
    # tvm.runtime.tensor copies into memory aligned to 64 bytes; from_dlpack of a NumPy array, whose memory is aligned to 16,
    # is an error. An array that is not contiguous would be copied as if it were.
    return tvm.runtime.tensor(np.ascontiguousarray(array))


def bindings(function: Any) -> Iterator[Any]:
    """All bindings of the function's own body, in order (branches of an If are not entered)."""
    for block in function.body.blocks:
        yield from block.bindings


def definitions(function: Any) -> dict[Any, Any]:
    """Variable -> the expression that it is bound to."""
    return {b.var: b.value for b in bindings(function) if isinstance(b, relax.VarBinding)}


def count_uses(function: Any) -> Counter[Any]:
    """Variable -> how often the function's bindings and its result use it."""
    found: Counter[Any] = Counter()

    def count(expr: Any) -> None:
        if isinstance(expr, relax.Var):
            found[expr] += 1

    for binding in bindings(function):
        relax.analysis.post_order_visit(binding.value, count)
    count(function.body.body)
    return found


def op_name(expr: Any) -> str:
    """The name of the operator that is called, "relax.add"; "" for other expressions."""
    return str(getattr(expr.op, "name", "")) if isinstance(expr, relax.Call) else ""


def dps_call(expr: Any) -> tuple[str, list[Any]] | None:
    """(name, arguments) of a call of a packed function; None for other expressions."""
    if op_name(expr) != "relax.call_dps_packed":
        return None
    return str(expr.args[0].global_symbol), list(expr.args[1].fields)


def out_types(call: Any) -> list[Any]:
    """The types of the tensors that a call gives, as `relax.call_dps_packed` takes them."""
    return list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else [call.ty]


def text_of(expr: Any) -> str:
    """The value of a string argument."""
    assert isinstance(expr, StringImm)
    return str(expr.value)


def rebuild(function: Any, visit: Visit, *, params: list[Any] | None = None, body: Any = None) -> Any:
    """The function with `visit` applied to every binding in order; with other params and another result, where given.

    A mutator of TVM's would do the same, but errors raised in it come back as TVM's own.
    """
    builder = relax.BlockBuilder()
    blocks = []
    for block in function.body.blocks:
        new: list[Any] = []
        for binding in block.bindings:
            values = visit(binding.var, binding.value) if isinstance(binding, relax.VarBinding) else None
            if values is None:
                new.append(binding)
                continue
            for var, value in [*values[:-1], (binding.var, values[-1])]:
                new.append(relax.VarBinding(var, builder.normalize(value)))
        blocks.append(
            relax.DataflowBlock(new) if isinstance(block, relax.DataflowBlock) else relax.BindingBlock(new)
        )
    return relax.Function(
        list(function.params) if params is None else params,
        relax.SeqExpr(blocks, function.body.body if body is None else body),
        function.ret_ty if body is None else body.ty,
        function.is_pure,
        function.attrs,
    )


def replace_main(mod: Any, function: Any, **others: Any) -> Any:
    """The module with another `main`, and more functions by name."""
    functions = {gv: f for gv, f in mod.functions_items() if gv.name_hint != "main"}
    functions |= {tvm.ir.GlobalVar(name): f for name, f in others.items()}
    new = tvm.IRModule({**functions, mod.get_global_var("main"): function}, attrs=mod.attrs)
    # A function put together by hand lacks the types of its blocks, on which the checks of well-formedness abort.
    return relax.transform.Normalize()(new)
