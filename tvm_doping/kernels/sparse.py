"""y += S z for every sparse format: one emitter a format, known by its name.

Each emitter adds to y, which holds the structured part already. The layouts are those of `tvm_doping.sparsity`; what a format
costs and where it wins stands with its emitter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.emit import Counter, Expr, Registers, add, load, splat, store
from tvm_doping.kernels.plan import Product
from tvm_doping.kernels.scope import Scope


def emit(product: Product, scope: Scope) -> None:
    """Emit y += S z in the product's format (nothing where S is empty)."""
    if product.sparse is not None:
        EMITTERS[product.sparse](product, scope)


def csr(product: Product, scope: Scope) -> None:
    """Rows one after the other: 0.6 nonzeros a cycle for one stream, one FMA a vector and nonzero for a tile.

    Rows are padded to a multiple of 4 nonzeros: four accumulators, and no loop for a remainder.
    """
    indptr, indices, values = (scope.arrays["S." + name] for name in ("indptr", "indices", "values"))
    unroll = product.params["multiple"]
    lanes, vectors = (1, 1) if scope.width == 1 else (scope.lanes, scope.vectors)
    with T.serial(0, product.rows) as r:
        acc = Registers(unroll * vectors, lanes)
        first = T.bind(indptr[r])
        with T.serial(0, (indptr[r + 1] - first) // unroll) as k:
            for u in range(unroll):
                at = first + k * unroll + u
                value = splat(values[at], lanes)
                column = tirx.Cast("int32", indices[at])
                for v in range(vectors):
                    x = scope.z[column] if scope.width == 1 else scope.input(column, v)
                    acc.fma(v * unroll + u, value, x)
        for v in range(vectors):
            total = acc.total(range(v * unroll, (v + 1) * unroll))
            if scope.width == 1:
                T.buffer_store(scope.y, scope.y[r] + total, [r])
            else:
                scope.accumulate(r, total, v)


def sell16(product: Product, scope: Scope) -> None:
    """16 rows side by side with a soft gather: 1.25 nonzeros a cycle and no instruction beyond SSE4.1.

    The four 16-bit indices of a quarter come in one 64-bit load and are taken apart by shifts: x[..] four times into one
    register (`vmovss`, `vinsertps`). A vectorised x[indices] would be scalarised by LLVM with an extraction per lane.
    """
    group_ptr, indices, values, rows = (scope.arrays["S." + name] for name in ("group_ptr", "indices", "values", "rows"))
    with T.serial(0, int(group_ptr.shape[0]) - 1) as g:
        acc = Registers(4, 4)
        first = T.bind(group_ptr[g])
        with T.serial(0, group_ptr[g + 1] - first) as k:
            for q in range(4):
                word = T.bind(tirx.reinterpret("uint64", indices[first + k, T.Ramp(4 * q, 1, 4)]))
                columns = [
                    tirx.Cast("int32", (word >> tirx.const(16 * i, "uint64")) & tirx.const(0xFFFF, "uint64")) for i in range(4)
                ]
                gathered = T.Shuffle([scope.z[column] for column in columns], [0, 1, 2, 3])
                acc.fma(q, values[first + k, T.Ramp(4 * q, 1, 4)], gathered)
        _scatter(scope, rows, g, [(acc[q], 4) for q in range(4)])


def perm32(product: Product, scope: Scope) -> None:
    """16 rows times stripes of 32 columns: x sits in two registers, `vpermi2ps` looks 16 of its values up at once (AVX-512).

    Cells of a group are sorted by their number of slots, so that each loop has a body of constant length.
    """
    arrays = {name: scope.arrays["S." + name] for name in ("rows", "stripes", "counts", "cell_ptr", "slot_ptr", "indices", "values")}
    slots_of_a_cell = product.params["max_slots"]
    full = T.Ramp(0, 1, 16)
    with T.serial(0, int(arrays["counts"].shape[0])) as g:
        acc = Registers(2, 16)
        cell, slot = Counter(arrays["cell_ptr"][g]), Counter(arrays["slot_ptr"][g])
        for slots in range(1, slots_of_a_cell + 1):
            cells = T.bind(arrays["counts"][g, slots - 1])
            with T.serial(0, cells) as i:
                column = T.bind(tirx.Cast("int32", arrays["stripes"][cell.value + i]) * 32)
                low, high = T.bind(load(scope.z, column, 16)), T.bind(load(scope.z, column + 16, 16))
                for j in range(slots):
                    at = slot.value + i * slots + j
                    picked = T.call_llvm_pure_intrin(
                        "float32x16", "llvm.x86.avx512.vpermi2var.ps.512",
                        low, tirx.Cast("int32x16", arrays["indices"][at, full]), high,
                    )  # fmt: skip
                    acc.fma(j % 2, arrays["values"][at, full], picked)
            cell.advance(cells)
            slot.advance(cells * slots)
        if product.params["sort"]:
            _scatter(scope, arrays["rows"], g, [(acc.total(), 16)])
        else:
            scope.accumulate(g * 16, acc.total())


def block(product: Product, scope: Scope) -> None:
    """b consecutive rows share a column: one broadcast and FMAs, no gather: 4.5-6 nonzeros a cycle for b = 16."""
    (_block_stream if scope.width == 1 else _block_tile)(product, scope)


def _block_stream(product: Product, scope: Scope) -> None:
    block_ptr, columns, values = (scope.arrays["S." + name] for name in ("block_ptr", "columns", "values"))
    b = int(values.shape[1])
    lanes = min(b, scope.lanes)
    parts = b // lanes
    unroll = max(1, 4 // parts)  # four chains of FMAs at least, to cover their latency
    with T.serial(0, int(block_ptr.shape[0]) - 1) as g:
        acc = Registers(unroll * parts, lanes)
        first = T.bind(block_ptr[g])
        count = T.bind(block_ptr[g + 1] - first)

        def one(at: Expr, u: int) -> None:
            x = T.bind(splat(scope.z[tirx.Cast("int32", columns[at])], lanes))
            for p in range(parts):
                acc.fma(p * unroll + u, values[at, T.Ramp(p * lanes, 1, lanes)], x)

        with T.serial(0, count // unroll) as k:
            for u in range(unroll):
                one(first + k * unroll + u, u)
        if unroll > 1:
            with T.serial(0, count % unroll) as k:
                one(first + count // unroll * unroll + k, 0)
        for p in range(parts):
            add(scope.y, g * b + p * lanes, acc.total(range(p * unroll, (p + 1) * unroll)), lanes)


def _block_tile(product: Product, scope: Scope) -> None:
    block_ptr, columns, values = (scope.arrays["S." + name] for name in ("block_ptr", "columns", "values"))
    b, vectors = int(values.shape[1]), scope.vectors
    # Rows that fit the register file together; a wider block is walked again for its other rows.
    rows = min(b, (scope.config.registers - 2 - vectors) // vectors)
    rows = next(r for r in range(rows, 0, -1) if b % r == 0)
    with T.serial(0, int(block_ptr.shape[0]) - 1) as g:
        for start in range(0, b, rows):
            acc = Registers(rows * vectors, scope.lanes)
            first = T.bind(block_ptr[g])
            with T.serial(0, block_ptr[g + 1] - first) as k:
                column = tirx.Cast("int32", columns[first + k])
                inputs = [T.bind(scope.input(column, v)) for v in range(vectors)]
                for r in range(rows):
                    weight = splat(values[first + k, start + r], scope.lanes)
                    for v in range(vectors):
                        acc.fma(r * vectors + v, weight, inputs[v])
            for r in range(rows):
                for v in range(vectors):
                    scope.accumulate(g * b + start + r, acc[r * vectors + v], v)


def _scatter(scope: Scope, rows: Any, g: Expr, vectors: list[tuple[Expr, int]]) -> None:
    """y[rows[16 g + l]] += lane l: 16 scalar additions, small beside the slots of a group."""
    lanes = T.alloc_buffer((16,), "float32")
    at = 0
    for vector, width in vectors:
        store(lanes, at, vector, width)
        at += width
    for i in range(16):
        row = T.bind(rows[g * 16 + i])
        T.buffer_store(scope.y, scope.y[row] + lanes[i], [row])


# Formats whose index serves one stream only have no emitter for a tile of streams.
EMITTERS: dict[str, Callable[[Product, Scope], None]] = {
    "csr": csr,
    "sell16": sell16,
    "perm32": perm32,
    "block4": block,
    "block8": block,
    "block16": block,
}
TILED = frozenset({"csr", "block4", "block8", "block16"})
