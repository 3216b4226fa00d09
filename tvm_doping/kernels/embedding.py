"""Rows of a table by number: y[i] = W[tokens[i]], W (V, D) structured, sparse, both or dense; the dense W is never formed.

Row r of B (x) C is B[r // m2, :] (x) C[r % m2, :], of U V it is U[r, :] V, of [D ; U V] one or the other; row r of S is added.
A table that is tied to a linear layer is read from that layer's packed arrays (`packed_rows`) where its plan says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tvm_doping import sparsity, structures
from tvm_doping._tvm import IRBuilder, T, tirx, tvm
from tvm_doping.kernels import packed_rows, product
from tvm_doping.kernels.emit import Buffer, Expr, Write, address, copy, load, row_times, splat
from tvm_doping.kernels.plan import EmbeddingPlan, Part


def pack(plan: EmbeddingPlan, w: Any) -> dict[str, np.ndarray]:
    """The arrays of the table, in the order in which the function takes them.

    Those of the linear layer as `linear.pack` makes them, but for its bias, and what rows need beside them; or the table's own:
    its factors as they are, then those of S.
    """
    if plan.packed:
        arrays = product.pack(plan.product, w, plan.config)
        return {**arrays, **packed_rows.extra(plan.product, arrays)}
    arrays = {name: np.ascontiguousarray(array) for name, array in product.base_of(w).arrays().items()}
    if plan.product.sparse is not None:
        packed = sparsity.pack(plan.product.sparse, w.S, values="fp32", **plan.product.params)
        arrays |= {f"S.{name}": array for name, array in packed.arrays.items()}
    return arrays


def reference(plan: EmbeddingPlan, arrays: dict[str, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """The look-up in NumPy on packed arrays: tokens (M,) -> (M, D)."""
    W = to_dense(plan, arrays)
    rows: np.ndarray = W[np.clip(tokens, 0, len(W) - 1)]
    return rows.astype("float32")


def to_dense(plan: EmbeddingPlan, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The table (V, D) that packed arrays stand for."""
    if plan.packed:
        return product.to_dense(plan.product, arrays)
    part = plan.product.part
    base = {name: array for name, array in arrays.items() if not name.startswith("S.")}
    W: np.ndarray = structures.FAMILIES[part.kind].from_arrays(base, part.shape).to_dense()
    # the sparse part alone: the structured arrays of a look-up are not those of a product
    return W + product.to_dense(replace(plan.product, part=Part(kind="zero", shape=part.shape)), arrays)


def prim_func(
    plan: EmbeddingPlan, arrays: Mapping[str, np.ndarray], name: str = "embedding"
) -> tvm.tirx.PrimFunc:
    """The function (tokens (M,), *arrays, y (M, D)). A number outside the table means its nearest row."""
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr(
            {
                "tirx.noalias": True,
                "doping.kernel": "embedding",
                "doping.format": plan.product.format,
            }
        )
        count = tirx.Var("rows", "int64")
        tokens = T.match_buffer(T.arg("tokens", T.handle()), (count,), plan.tokens)
        packed = product.parameters(arrays)
        y = T.match_buffer(T.arg("y", T.handle()), (count, plan.product.columns))
        last = tirx.const(plan.product.rows - 1, "int64")
        with T.serial(0, count) as i:
            r = T.bind(tirx.max(tirx.min(address(tokens[i]), last), tirx.const(0, "int64")))

            def write(j: Expr, value: Expr, width: int, i: Expr = i) -> None:
                T.buffer_store(y, value, [i, T.Ramp(j, 1, width) if width > 1 else j])

            def add(column: Expr, value: Expr, i: Expr = i) -> None:
                T.buffer_store(y, y[i, column] + value, [i, column])

            if plan.packed:
                packed_rows.structured(plan.product, plan.config, packed, r, write)
            else:
                _structured(plan, packed, r, write)
            packed_rows.sparse_entries(plan.product, packed, r, add)
    return builder.get()


def _structured(plan: EmbeddingPlan, arrays: Mapping[str, Buffer], r: Expr, write: Write) -> None:
    """Write row r of the structured part, from factors as they are."""
    part, lanes, columns = plan.product.part, plan.config.lanes, plan.product.columns
    if part.kind == "dense":
        copy(lambda j, w: load(arrays["W"], j, w, r), write, columns, lanes)
    elif part.kind == "kronecker":
        _, n1, m2, n2 = part.dims
        outer, inner = T.bind(tirx.truncdiv(r, m2)), T.bind(tirx.truncmod(r, m2))
        B, C = arrays["B"], arrays["C"]
        if n2 == 1:  # the entries of B stand side by side in y
            scale = T.bind(C[inner, 0])
            copy(lambda j, w: splat(scale, w) * load(B, j, w, outer), write, n1, lanes)
            return
        with T.serial(0, n1) as a:
            scale = T.bind(B[outer, a])
            copy(
                lambda j, w: splat(scale, w) * load(C, j, w, inner),
                lambda j, v, w: write(a * n2 + j, v, w),
                n2,
                lanes,
            )
    elif part.kind == "low_rank":
        _low_rank(plan, arrays, r, write)
    elif part.kind == "hybrid":
        above = part.dims[0]
        with T.If(r < above):
            with T.Then():
                copy(lambda j, w: load(arrays["D"], j, w, r), write, columns, lanes)
            with T.Else():
                _low_rank(plan, arrays, r - above, write)
    else:
        copy(lambda j, w: splat(0.0, w), write, columns, lanes)


def _low_rank(plan: EmbeddingPlan, arrays: Mapping[str, Buffer], r: Expr, write: Write) -> None:
    row_times(lambda p: arrays["U"][r, p], arrays["V"], plan.config, write)
