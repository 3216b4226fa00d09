"""y += S z in every sparse format: for one stream, and for a tile of streams side by side.

Each emitter adds to y, which holds the structured part already. The layouts are those of `tvm_doping.sparsity`; what a format
costs and where it wins stands with its emitter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels import dot_blocks, gather, pairs, perm2x32, perm8, perm32, perm64
from tvm_doping.kernels.emit import (
    LINES,
    Buffer,
    Expr,
    Registers,
    across,
    add,
    address,
    load,
    splat,
    split,
    unpacked,
)
from tvm_doping.kernels.plan import Product
from tvm_doping.kernels.rows import Fma, add_rows, row_of, scatter_rows
from tvm_doping.kernels.scope import Scope
from tvm_doping.kernels.values import Rows, scaled, widen
from tvm_doping.sparsity.dots import DOTS


def emit(product: Product, scope: Scope) -> None:
    """Emit y += S z in the product's format (nothing where S is empty)."""
    if product.sparse is None:
        return
    stream, tile = EMITTERS[product.sparse]
    if scope.dot and product.sparse in DOTS[scope.dot].formats:
        stream, tile = dot_blocks.stream, dot_blocks.tile
    for at in range(product.stripes):
        own = prefix(product, at)
        arrays = {
            "S." + name.removeprefix(own): a for name, a in scope.arrays.items() if name.startswith(own)
        }
        (stream if scope.width == 1 else tile)(product, replace(scope, arrays=arrays))


def prefix(product: Product, stripe: int) -> str:
    """What the names of the arrays of a stripe of S begin with."""
    return "S." if product.stripes == 1 else f"S{stripe}."


def _csr_stream(product: Product, scope: Scope) -> None:
    """Rows one after the other, 0.6-0.75 nonzeros a cycle. Rows are padded to whole groups of accumulators."""
    if scope.config.gather and product.params["multiple"] % scope.lanes == 0:
        _csr_vectors(product, scope)
        return
    indptr, indices, values = _arrays(scope, "indptr", "indices", "values")
    unroll = product.params["multiple"]
    with split(product.rows, scope.shared, LINES) as r:
        acc = Registers(unroll, 1)
        first = address(indptr[r])
        with T.serial(0, (address(indptr[r + 1]) - first) // unroll) as k:
            for u in range(unroll):
                at = first + k * unroll + u
                acc.fma(u, widen(values[at]), scope.z[tirx.Cast("int64", indices[at])])
        total = scaled(acc.total(), _scales(scope), r, 1)
        T.buffer_store(scope.y, scope.y[r] + total, [r])


def _csr_vectors(product: Product, scope: Scope) -> None:
    """The same with a row's nonzeros side by side in vectors: one load for the values of a vector, one for its indices (NEON)."""
    indptr, indices, values = _arrays(scope, "indptr", "indices", "values")
    unroll, lanes = product.params["multiple"], scope.lanes
    with gather.scope(scope.config), split(product.rows, scope.shared, LINES) as r:
        acc = Registers(unroll // lanes, lanes)
        first = address(indptr[r])
        with T.serial(0, (address(indptr[r + 1]) - first) // unroll) as k:
            for v in range(unroll // lanes):
                at = first + k * unroll + v * lanes
                acc.fma(v, widen(load(values, at, lanes)), gather.gathered(scope, indices, at, lanes))
        total = scaled(across(acc.total(), lanes), _scales(scope), r, 1)
        T.buffer_store(scope.y, scope.y[r] + total, [r])


def _csr_tile(product: Product, scope: Scope) -> None:
    """One FMA a nonzero and vector of streams."""
    indptr, indices, values = _arrays(scope, "indptr", "indices", "values")
    unroll, vectors = product.params["multiple"], scope.vectors
    with split(product.rows, scope.shared, LINES) as r:
        acc = Registers(unroll * vectors, scope.lanes)
        first = address(indptr[r])
        with T.serial(0, (address(indptr[r + 1]) - first) // unroll) as k:
            at = first + k * unroll
            for u, column in enumerate(unpacked(indices, at, unroll)):
                weight = splat(widen(values[at + u]), scope.lanes)
                for v in range(vectors):
                    acc.fma(v * unroll + u, weight, scope.input(column, v))
        for v in range(vectors):
            total = acc.total(range(v * unroll, (v + 1) * unroll))
            scope.accumulate(r, scaled(total, _scales(scope), r, scope.lanes), v)


def _sell16_stream(product: Product, scope: Scope) -> None:
    """16 rows side by side with a soft gather: 1.25 nonzeros a cycle, and no instruction beyond SSE4.1.

    x[..] four times into one register (`vmovss`, `vinsertps`), two of them into one of eight where there is AVX, for one FMA of
    both (8 % faster than two); a vectorised x[indices] LLVM would scalarise.
    """
    group_ptr, indices, values, rows = _arrays(scope, "group_ptr", "indices", "values", "rows")
    with gather.scope(scope.config), split(int(group_ptr.shape[0]) - 1, scope.shared) as g:
        lanes = min(8, scope.lanes)
        acc = Registers(16 // lanes, lanes)
        first = address(group_ptr[g])
        with T.serial(0, address(group_ptr[g + 1]) - first) as k:
            for q in range(16 // lanes):
                weights = widen(load(values, lanes * q, lanes, first + k))
                acc.fma(q, weights, gather.gathered(scope, indices, lanes * q, lanes, first + k))
        scatter_rows(
            scope, rows, g, [(scaled(acc[q], _scales(scope), g, lanes), lanes) for q in range(16 // lanes)]
        )


def _sell16_tile(product: Product, scope: Scope) -> None:
    """16 accumulators, one a row: an FMA a slot's lane and vector of streams."""
    group_ptr, indices, values, rows = _arrays(scope, "group_ptr", "indices", "values", "rows")
    if pairs.paired(scope):

        def columns(at: Expr) -> list[Expr]:
            return unpacked(indices, 0, 16, at)

        pairs.tile(scope, group_ptr, values, columns, lambda g: row_of(rows, g * 16), _scales(scope))
        return
    with split(int(group_ptr.shape[0]) - 1, scope.shared) as g:
        first, stored = address(group_ptr[g]), Rows(values, 16, scope.lanes)

        def walk(lanes: range, fma: Fma, first: Expr = first, stored: Rows = stored, g: Expr = g) -> None:
            def slot(at: Expr, weight: Callable[[int], Expr]) -> None:
                columns = unpacked(indices, lanes.start, len(lanes), at)
                for lane, column in zip(lanes, columns, strict=True):
                    fma(lane, weight(lane), column)

            stored.each(first, address(group_ptr[g + 1]) - first, lanes, slot)

        add_rows(scope, 16, walk, row_of(rows, g * 16), _scales(scope), g)


def _block_stream(product: Product, scope: Scope) -> None:
    """b consecutive rows share a column: one broadcast and FMAs, no gather: 4.5-6 nonzeros a cycle for b = 16."""
    block_ptr, columns, values = _arrays(scope, "block_ptr", "columns", "values")
    b = int(values.shape[1])
    lanes = min(b, scope.lanes)
    parts = b // lanes
    # four chains of FMAs at least, to cover their latency; as many as short vectors leave registers for
    unroll = max(1, max(4, scope.config.registers // lanes) // parts) if lanes == scope.lanes else 4 // parts
    with split(int(block_ptr.shape[0]) - 1, scope.shared) as g:
        acc = Registers(unroll * parts, lanes)
        first = address(block_ptr[g])
        count = T.bind(address(block_ptr[g + 1]) - first)

        def one(at: Expr, u: int, acc: Registers = acc) -> None:
            x = T.bind(splat(scope.z[tirx.Cast("int64", columns[at])], lanes))
            for p in range(parts):
                weights = values[at, T.Ramp(p * lanes, 1, lanes)] if lanes > 1 else values[at, p]
                acc.fma(p * unroll + u, widen(weights), x)

        with T.serial(0, count // unroll) as k:
            for u in range(unroll):
                one(first + k * unroll + u, u)
        if unroll > 1:
            with T.serial(0, count % unroll) as k:
                one(first + count // unroll * unroll + k, 0)
        for p in range(parts):
            total = acc.total(range(p * unroll, (p + 1) * unroll))
            add(scope.y, g * b + p * lanes, scaled(total, _scales(scope), g, lanes), lanes)


def _block_tile(product: Product, scope: Scope) -> None:
    """One vector of streams serves all rows of a block."""
    block_ptr, columns, values = _arrays(scope, "block_ptr", "columns", "values")
    b = int(values.shape[1])
    if pairs.paired(scope):

        def column(at: Expr) -> list[Expr]:
            return [address(columns[at])]

        pairs.tile(scope, block_ptr, values, column, lambda g: row_of(None, g * b), _scales(scope))
        return
    with split(int(block_ptr.shape[0]) - 1, scope.shared) as g:
        first, stored = address(block_ptr[g]), Rows(values, b, scope.lanes)

        def walk(lanes: range, fma: Fma, first: Expr = first, stored: Rows = stored, g: Expr = g) -> None:
            def block(at: Expr, weight: Callable[[int], Expr]) -> None:
                column = address(columns[at])
                for lane in lanes:
                    fma(lane, weight(lane), column)

            stored.each(first, address(block_ptr[g + 1]) - first, lanes, block)

        add_rows(scope, b, walk, row_of(None, g * b), _scales(scope), g)


def _arrays(scope: Scope, *names: str) -> list[Any]:
    return [scope.arrays["S." + name] for name in names]


def _scales(scope: Scope) -> Buffer | None:
    return scope.arrays.get("S.scales")


Emitter = Callable[[Product, Scope], None]
EMITTERS: dict[str, tuple[Emitter, Emitter]] = {
    "csr": (_csr_stream, _csr_tile),
    "sell16": (_sell16_stream, _sell16_tile),
    "perm8": (perm8.stream, perm8.tile),
    "perm32": (perm32.stream, perm32.tile),
    "perm32_expand": (perm32.stream, perm32.tile),
    "perm2x32": (perm2x32.stream, perm32.tile),
    "perm64": (perm64.stream, perm64.tile),
    "block4": (_block_stream, _block_tile),
    "block8": (_block_stream, _block_tile),
    "block16": (_block_stream, _block_tile),
}
# Formats whose kernels round z to bfloat16 (mma16: to the type of the values) before S multiplies it.
ROUNDING = frozenset({"perm64", "mma16"})
