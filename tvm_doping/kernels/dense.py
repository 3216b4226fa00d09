"""y += W z for a dense W, and what is made of dense products: low rank U (V z), and the hybrid [D; U V].

Arrays: panels (ceil(m / lanes), n, lanes): `lanes` consecutive rows side by side, so that one load serves one column of all
of them and no horizontal sum is needed. Rows beyond m are zeros. In int8 a panel has a scale, in NAME.scales (panels,).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tvm_doping._tvm import T
from tvm_doping.kernels.emit import LINES, Buffer, Product2, Registers, matmul, prefetch, splat, split, store
from tvm_doping.kernels.plan import Config, Part
from tvm_doping.kernels.scope import SLACK, Scope
from tvm_doping.kernels.values import Rows, scaled, widen
from tvm_doping.sparsity.values import ValueType, decode, encode

# A product of one stream is bound by memory: four panels are four streams for the prefetcher, and with the two columns in
# flight eight chains of FMAs, which covers four cycles of latency on two ports.
_PANELS, _CHAINS = 4, 8
# A tile sums so many columns at a time: a sum of sums rounds less than one chain of additions as long as the row.
_COLUMNS = 160
# Columns of a panel that a tile prefetches ahead: two pages, as the hardware's prefetcher stops at the end of one.
_AHEAD = 128


def pack(structure: Any, config: Config, values: ValueType = "fp32") -> dict[str, np.ndarray]:
    """The panels of a dense, low-rank or hybrid structure, stored as `values`."""
    arrays: dict[str, np.ndarray] = {}
    for name, array in structure.arrays().items():
        stored = panels(array, config.lanes)
        encoded = encode(stored, np.arange(len(stored) + 1), values)
        arrays[name] = encoded.pop("values")
        arrays |= {f"{name}.{key}": extra for key, extra in encoded.items()}
    return arrays


def panels(w: np.ndarray, lanes: int) -> np.ndarray:
    """W (m, n) as panels (ceil(m / lanes), n, lanes)."""
    m, n = w.shape
    padded = np.zeros((-(-m // lanes) * lanes, n), "float32")
    padded[:m] = w
    return np.ascontiguousarray(padded.reshape(-1, lanes, n).transpose(0, 2, 1))


def to_dense(part: Part, arrays: dict[str, np.ndarray], values: ValueType = "fp32") -> np.ndarray:
    """The dense matrix that packed panels stand for."""
    m, _ = part.shape

    def rows(name: str, count: int) -> np.ndarray:
        p = decode(arrays[name], np.arange(len(arrays[name]) + 1), values, arrays.get(name + ".scales"))
        return p.transpose(0, 2, 1).reshape(-1, p.shape[1])[:count]

    if part.kind == "dense":
        return rows("W", m)
    if part.kind == "low_rank":
        return rows("U", m) @ rows("V", part.dims[0])
    k, rank = part.dims
    return np.concatenate([rows("D", k), rows("U", m - k) @ rows("V", rank)])


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

    if count >= _PANELS:
        with split(count // _PANELS, scope.shared) as block:
            group(block * _PANELS, _PANELS)
    if count % _PANELS and scope.shared:
        with split(1, scope.shared):
            group(count // _PANELS * _PANELS, count % _PANELS)
    elif count % _PANELS:
        group(count // _PANELS * _PANELS, count % _PANELS)


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
