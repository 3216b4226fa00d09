"""The order of stores that do not depend on each other."""

from __future__ import annotations

from typing import Any

from tvm_doping._tvm import tirx, tvm
from tvm_doping.kernels.trees import found


def sort_stores(function: Any) -> Any:
    """A function that only fills places of a buffer, H[3] = f(H[0]); H[2] = ...: in the order of places. Others as they are.

    TVM's VMShapeLower computes shapes so, in an order that differs between processes: code would differ from compilation
    to compilation.
    """
    stores = list(function.body.seq) if isinstance(function.body, tirx.SeqStmt) else []
    places = [_place(store) for store in stores]
    if not stores or None in places:
        return function
    read = {_place(load) for store in stores for load in found(store.value, tvm.ir.TensorLoad)}
    if None in read or len(set(places)) < len(places) or read.intersection(places):
        return function
    return function.with_body(
        tirx.SeqStmt([store for _, store in sorted(zip(places, stores, strict=True), key=_first)])
    )


def _first(pair: tuple[Any, Any]) -> int:
    return pair[0][1]


def _place(node: Any) -> tuple[Any, int] | None:
    """(buffer, index) of a store or load at a constant place."""
    if not isinstance(node, tirx.BufferStore | tvm.ir.TensorLoad) or len(node.indices) != 1:
        return None
    buffer = node.buffer if isinstance(node, tirx.BufferStore) else node.source
    (index,) = node.indices
    return (buffer.name, int(index)) if isinstance(index, tirx.IntImm) else None
