"""LiftWeights: constants become the last parameter of main, so that they are stored beside the code and not in it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from tvm_doping._tvm import GenericConst, bindings, handle, op_name, rebuild, relax, replace_main
from tvm_doping.passes.context import Context
from tvm_doping.passes.fuse import ARRAYS, REPORT

PARAMETER = "weights"


class LiftWeights:
    """Constants -> weights[i], and main(..., weights); they and their names go to `context.weights`.

    All of them, however small: for each constant in the code the runtime writes a warning when it loads it.
    Those of one shape, dtype and contents are one weight: nothing writes to them. Arrays of a kernel are named "<layer>.<array>",
    by a tied table's linear layer rather than by the table, others as PyTorch names them. Without any, main still gets the
    parameter: the calling convention is one.
    """

    def __init__(self, context: Context) -> None:
        self.names, self.weights = context.names, context.weights

    def __call__(self, mod: Any) -> Any:
        main = mod["main"]
        if main.params and main.params[-1].name == PARAMETER:
            return mod
        # Typed as a tuple, each of its tensors would be checked at every call: 0.25 us each. What is typed
        # AnyType is not; the loader of a bundle has checked the tensors.
        weights = relax.Var(PARAMETER, relax.AnyType())
        found, same = self._collect(mod)
        variables = {key: relax.DataflowVar(f"w{i}", c.ty) for i, (key, (_, c)) in enumerate(found.items())}
        self.weights.update({name: c.value for name, c in found.values()})
        bound: set[int] = set()

        def visit(var: Any, value: Any) -> list[Any] | None:
            before: list[Any] = []

            def replace(expr: Any) -> Any:
                if isinstance(expr, GenericConst) and (key := same.get(handle(expr.value))) is not None:
                    if key not in bound:
                        bound.add(key)
                        before.append((variables[key], _item(weights, list(variables).index(key), expr.ty)))
                    return variables[key]
                if isinstance(expr, relax.Tuple):
                    return relax.Tuple([replace(f) for f in expr.fields])
                if isinstance(expr, relax.Call):
                    args = [replace(a) for a in expr.args]
                    return relax.Call(expr.op, args, expr.attrs, expr.ty_args)
                return expr

            new = replace(value)
            return [*before, new] if before or _mentions(value, same) else None

        return replace_main(mod, rebuild(main, visit, params=[*main.params, weights]))

    def _collect(self, mod: Any) -> tuple[dict[int, tuple[str, Any]], dict[int, int]]:
        """Handle -> (name, constant) of each weight, and the handle of every constant -> that of the weight that it is."""
        found: dict[int, tuple[str, Any]] = {}
        same: dict[int, int] = {}
        seen: dict[Any, int] = {}
        taken: set[str] = set()
        values = [getattr(binding, "value", None) for binding in bindings(mod["main"])]
        for value in sorted(values, key=lambda value: _is_tied(value, mod)):
            for name, c in _constants(value, mod):
                key = handle(c.value)
                if key in same:
                    continue
                same[key] = seen.setdefault(_identity(c), key)
                if same[key] != key:
                    continue
                wanted = name or self.names.get(key) or f"constant_{len(found)}"
                unique = next(
                    n for n in (wanted, *(f"{wanted}_{i}" for i in range(2, 10_000))) if n not in taken
                )
                taken.add(unique)
                found[key] = (unique, c)
        return found, same


def _identity(c: Any) -> tuple[str, tuple[int, ...], bytes]:
    array: np.ndarray = c.value.numpy()
    return str(c.ty.dtype), array.shape, hashlib.sha256(np.ascontiguousarray(array).data).digest()


def _kernel(expr: Any, mod: Any) -> Any:
    """The kernel of a layer that the expression calls, or None."""
    function = mod[expr.args[0]] if op_name(expr) == "relax.call_tir" else None
    return function if function is not None and function.attrs and REPORT in function.attrs else None


def _is_tied(expr: Any, mod: Any) -> bool:
    """Whether it is a look-up in another layer's weight."""
    kernel = _kernel(expr, mod)
    return kernel is not None and bool(json.loads(kernel.attrs[REPORT])["plan"].get("tied"))


def _constants(expr: Any, mod: Any) -> list[tuple[str, Any]]:
    """(name or "", constant) of those that stand in the expression."""
    if isinstance(expr, GenericConst):
        return [("", expr)] if hasattr(expr.value, "shape") else []
    if isinstance(expr, relax.Tuple):
        return [c for field in expr.fields for c in _constants(field, mod)]
    if not isinstance(expr, relax.Call):
        return []
    kernel = _kernel(expr, mod)
    if kernel is not None:
        layer, arrays = json.loads(kernel.attrs[REPORT])["name"], json.loads(kernel.attrs[ARRAYS])
        fields = list(expr.args[1].fields)
        return [
            (f"{layer}.{a}", c)
            for a, c in zip(arrays, fields[-len(arrays) :], strict=True)
            if isinstance(c, GenericConst)
        ]
    return [c for arg in expr.args for c in _constants(arg, mod)]


def _mentions(expr: Any, constants: dict[int, int]) -> bool:
    if isinstance(expr, GenericConst):
        return hasattr(expr.value, "shape") and handle(expr.value) in constants
    parts = expr.args if isinstance(expr, relax.Call) else getattr(expr, "fields", [])
    return any(_mentions(part, constants) for part in parts)


def _item(weights: Any, index: int, ty: Any) -> Any:
    return relax.call_pure_packed("vm.builtin.tuple_getitem", weights, relax.prim_value(index), ty_args=[ty])
