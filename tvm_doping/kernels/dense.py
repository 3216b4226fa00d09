"""y += W z for a dense W, and what is made of dense products: low rank U (V z), and the hybrid [D; U V].

Arrays: panels (ceil(m / lanes), n, lanes): `lanes` consecutive rows side by side, so that one load serves one column of all
of them and no horizontal sum is needed. Rows beyond m are zeros. In int8 a panel has a scale, in NAME.scales (panels,).

For a dot product (plan.Product.dot) a panel has `rows` rows, and `each` columns of a row side by side: panels
(ceil(m / rows), n / each, rows * each), a register a group of columns; columns that fill up `unit` are zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tvm_doping._tvm import T
from tvm_doping.kernels import dot_dense
from tvm_doping.kernels.emit import (
    LINES,
    Buffer,
    Product2,
    Registers,
    blocks,
    matmul,
    prefetch,
    splat,
    split,
    store,
)
from tvm_doping.kernels.plan import Config, Part
from tvm_doping.kernels.scope import SLACK, Scope
from tvm_doping.kernels.values import Rows, scaled, widen
from tvm_doping.sparsity.dots import Dot
from tvm_doping.sparsity.dots import product as dot_product
from tvm_doping.sparsity.values import ValueType, decode, encode

# A product of one stream is bound by memory: four panels are four streams for the prefetcher, and with the two columns in
# flight eight chains of FMAs, which covers four cycles of latency on two ports.
_PANELS, _CHAINS = 4, 8
# A tile sums so many columns at a time: a sum of sums rounds less than one chain of additions as long as the row.
_COLUMNS = 160
# Columns of a panel that a tile prefetches ahead: two pages, as the hardware's prefetcher stops at the end of one.
_AHEAD = 128


def pack(
    structure: Any, config: Config, values: ValueType = "fp32", dot: Dot | None = None
) -> dict[str, np.ndarray]:
    """The panels of a dense, low-rank or hybrid structure, stored as `values`."""
    arrays: dict[str, np.ndarray] = {}
    for name, array in structure.arrays().items():
        stored = panels(array, dot.rows, dot.each, dot.unit) if dot else panels(array, config.lanes)
        encoded = encode(stored, np.arange(len(stored) + 1), values)
        arrays[name] = encoded.pop("values")
        arrays |= {f"{name}.{key}": extra for key, extra in encoded.items()}
    return arrays


def panels(w: np.ndarray, lanes: int, each: int = 1, unit: int = 1) -> np.ndarray:
    """W (m, n), its columns filled up to `unit`, as panels (ceil(m / lanes), n / each, lanes * each)."""
    m, n = w.shape
    count, groups = -(-m // lanes), -(-n // unit) * unit // each
    padded = np.zeros((count * lanes, groups * each), "float32")
    padded[:m, :n] = w
    apart = padded.reshape(count, lanes, groups, each).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(apart.reshape(count, groups, lanes * each))


def to_dense(
    part: Part, arrays: dict[str, np.ndarray], values: ValueType = "fp32", dot: Dot | None = None
) -> np.ndarray:
    """The dense matrix that packed panels stand for."""
    whole = matrices(part, arrays, values, dot)
    if part.kind == "dense":
        return whole["W"]
    low: np.ndarray = whole["U"] @ whole["V"]
    return low if part.kind == "low_rank" else np.concatenate([whole["D"], low])


def reference(
    part: Part, arrays: dict[str, np.ndarray], values: ValueType, dot: Dot
) -> Callable[[np.ndarray], np.ndarray]:
    """The function z (..., n) -> y (..., m) of packed panels that a dot product multiplies: V z is rounded as z is."""
    whole = matrices(part, arrays, values, dot)
    if part.kind == "dense":
        return lambda z: dot_product(dot, whole["W"], z)

    def low(z: np.ndarray) -> np.ndarray:
        return dot_product(dot, whole["U"], dot_product(dot, whole["V"], z))

    if part.kind == "low_rank":
        return low
    return lambda z: np.concatenate([dot_product(dot, whole["D"], z), low(z)], axis=-1)


def matrices(
    part: Part, arrays: dict[str, np.ndarray], values: ValueType, dot: Dot | None
) -> dict[str, np.ndarray]:
    """The matrices that packed panels stand for, by name."""
    m, n = part.shape
    k, rank = part.dims if part.kind == "hybrid" else (0, sum(part.dims))
    shapes = {"W": (m, n), "D": (k, n), "U": (m - k, rank), "V": (rank, n)}
    each = dot.each if dot else 1

    def matrix(name: str) -> np.ndarray:
        stored = arrays[name]
        p = decode(stored, np.arange(len(stored) + 1), values, arrays.get(name + ".scales"))
        count, groups, size = p.shape
        apart = p.reshape(count, groups, size // each, each).transpose(0, 2, 1, 3)
        rows, columns = shapes[name]
        return np.ascontiguousarray(apart.reshape(-1, groups * each)[:rows, :columns])

    return {name: matrix(name) for name in shapes if name in arrays}


def scratch(part: Part, config: Config, width: int) -> int:
    """Values of the inner product V z."""
    return 0 if part.kind == "dense" else (part.dims[-1] + SLACK) * width


def emit(part: Part, scope: Scope) -> None:
    """Emit y += W z for a part of kind dense, low_rank or hybrid."""
    _, n = part.shape
    if part.kind == "dense":
        _product(scope, "W", n, 0)
        return
    k, rank = (0, part.dims[0]) if part.kind == "low_rank" else part.dims
    if k:
        _product(scope, "D", n, 0)
    inner, size = scope.scratch, scratch(part, scope.config, scope.width)
    with split(size // scope.lanes, scope.shared, LINES) as i:
        store(inner, i * scope.lanes, splat(0.0, scope.lanes), scope.lanes)
    _product(replace(scope, y=inner), "V", n, 0)
    _product(replace(scope, z=inner), "U", rank, k)


def _product(scope: Scope, name: str, n: int, row: int) -> None:
    """y[row:] += W z[:n], W the panels of that name."""
    w, scales = scope.arrays[name], scope.arrays.get(name + ".scales")
    count, lanes = int(w.shape[0]), scope.lanes
    if scope.dot:
        dot_dense.emit(scope, w, scales, n, row)
        return
    if scope.width > 1:
        with split(count, scope.shared) as g:
            stored = Rows(w, lanes, lanes, _COLUMNS)
            for start in range(0, n, _COLUMNS):
                _tile(scope, w, scales, stored, g, range(start, min(start + _COLUMNS, n)), row)
        return

    def group(first: Any, size: int) -> None:
        unroll = max(1, _CHAINS // size)
        acc = Registers(size * unroll, lanes)

        def column(k: Any, u: int) -> None:
            x = T.bind(splat(scope.z[k], lanes))
            for p in range(size):
                vector = w[first + p, k, T.Ramp(0, 1, lanes)] if lanes > 1 else w[first + p, k, 0]
                acc.fma(p * unroll + u, widen(vector), x)

        if n >= unroll:
            with T.serial(0, n // unroll) as block:
                for u in range(unroll):
                    column(block * unroll + u, u)
        for k in range(n // unroll * unroll, n):
            column(k, k % unroll)
        for p in range(size):
            total = acc.total(range(p * unroll, (p + 1) * unroll))
            scope.accumulate(row + (first + p) * lanes, scaled(total, scales, first + p, lanes))

    blocks(count, _PANELS, group, scope.shared)


def _tile(
    scope: Scope, w: Buffer, scales: Buffer | None, stored: Rows, g: Any, columns: range, row: int
) -> None:
    """The product of panel g and some columns, for a tile of streams."""
    first, lanes = columns.start, scope.lanes
    if stored.narrow:
        stored.fill(lambda k: (g, first + k), len(columns), range(lanes))
    matmul(
        Product2(
            m=lanes,
            k=len(columns),
            ahead=lambda k: prefetch(w, g, first + k + _AHEAD, 0),
            nv=scope.vectors,
            a=lambda i, k: stored.scalar(k, i) if stored.narrow else w[g, first + k, i],
            x=lambda k, j: scope.input(first + k, j),
            out=lambda i, j, value: scope.accumulate(row + g * lanes + i, scaled(value, scales, g, lanes), j),
        ),
        scope.config,
    )
