"""MatchHead: what is wanted of a layer's logits is computed by the layer's own kernel, while they are in the cache."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from tvm_doping._tvm import (
    StringImm,
    count_uses,
    definitions,
    dps_call,
    op_name,
    rebuild,
    relax,
    replace_main,
    text_of,
)
from tvm_doping.heads import Head
from tvm_doping.kernels import head as heads
from tvm_doping.passes.context import Context
from tvm_doping.passes.naming import bound


class MatchHead:
    """argmax, topk, log_softmax or softmax of doping.linear_packed(layer, x, *arrays), over its outputs (M, V), reshaped or not
    -> doping.linear_packed with the head in its plan.

    Logits that something else uses too stay as they are. An argmax or a topk over another axis, or from the smallest, stays.
    """

    def __init__(self, context: Context) -> None:
        pass

    def __call__(self, mod: Any) -> Any:
        main = mod["main"]
        values, uses = definitions(main), count_uses(main)

        def visit(var: Any, value: Any) -> list[Any] | None:
            head = head_of(value)
            linear = _linear(value.args[0], values, uses) if head else None
            return None if head is None or linear is None else _fused(var, value, head, linear)

        return relax.transform.DeadCodeElimination(["main"])(replace_main(mod, rebuild(main, visit)))


def head_of(expr: Any) -> Head | None:
    """The head that an operator of Relax is; None for anything else."""
    name = op_name(expr)
    if name not in ("relax.argmax", "relax.topk", "relax.nn.log_softmax", "relax.nn.softmax"):
        return None
    logits, axis = expr.args[0], expr.attrs.axis
    rank = len(logits.ty.shape) if logits.ty.shape is not None else 0
    if axis is None or int(axis) not in (-1, rank - 1) or str(logits.ty.dtype) != "float32":
        return None
    if name == "relax.argmax":
        return Head(kind="argmax") if str(expr.ty.dtype) == "int64" else None
    if name == "relax.topk":
        whole = expr.attrs.ret_type == "both" and expr.attrs.largest and str(expr.attrs.dtype) == "int64"
        return Head(kind="top_k", k=int(expr.attrs.k)) if whole else None
    return Head(kind="log_softmax" if name.endswith("log_softmax") else "softmax")


def _linear(logits: Any, values: dict[Any, Any], uses: Counter[Any]) -> list[Any] | None:
    """The arguments of the layer that the logits come from, if nothing else takes them."""
    while op_name(values.get(logits)) == "relax.reshape" and uses[logits] == 1:
        before = values[logits].args[0]
        if int(before.ty.shape[-1]) != int(logits.ty.shape[-1]):
            return None
        logits = before
    call = dps_call(values.get(logits))
    if call is None or call[0] != "doping.linear_packed" or uses[logits] != 1:
        return None
    return None if json.loads(text_of(call[1][0]))["plan"]["head"] else call[1]


def _fused(var: Any, value: Any, head: Head, linear: list[Any]) -> list[Any]:
    """The bindings of the layer with its head, in place of `value`."""
    layer = json.loads(text_of(linear[0]))
    plan = layer["plan"] = layer["report"]["plan"] = {**layer["plan"], "head": str(head)}
    layer["report"]["kernel"] = f"linear with {head}"
    rows = linear[1].ty.shape[0]
    types = [
        relax.TensorType((rows, columns), dtype) for columns, dtype in heads.outputs(head, plan["outputs"])
    ]
    call = relax.call_dps_packed(
        "doping.linear_packed", [StringImm(json.dumps(layer)), *linear[1:]], out_ty=types
    )
    return shaped(var, value, call)


def shaped(var: Any, value: Any, call: Any) -> list[Any]:
    """Bindings that give `value`'s results, of any shape, by a call that gives them as (M, ...)."""
    result = bound(f"{var.name}_head", call)
    if not isinstance(value.ty, relax.TupleType):
        return [(result, call), relax.op.reshape(result, relax.ShapeExpr(list(value.ty.shape)))]
    made: list[Any] = [(result, call)]
    fields: list[Any] = []
    for i, ty in enumerate(value.ty.fields):
        taken = relax.TupleGetItem(result, i)
        made.append((bound(f"{var.name}_{i}", taken), taken))
        view = relax.op.reshape(made[-1][0], relax.ShapeExpr(list(ty.shape)))
        made.append((bound(f"{var.name}_as_{i}", view), view))
        fields.append(made[-1][0])
    return [*made, relax.Tuple(fields)]
