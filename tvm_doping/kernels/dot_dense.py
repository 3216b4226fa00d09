"""y += W z for a dense W in a narrow type by a dot-product instruction: panels as `dense.pack` lays them out, z rounded once.

For one stream a register of weights is a group of columns of `rows` rows, and the group of z is in all lanes; for a tile
a register of z is a group of columns of some streams, and the group of one row in all lanes: the same arrays serve both.
"""

from __future__ import annotations

from typing import Any

from tvm_doping._tvm import T
from tvm_doping.kernels import dots
from tvm_doping.kernels.dots import Narrow, Sums, held, zipped
from tvm_doping.kernels.emit import Buffer, Expr, blocks, prefetch, splat, split
from tvm_doping.kernels.scope import Scope
from tvm_doping.sparsity.dots import DOTS

# Panels that share a register of z, and accumulators of all of them: four instructions a cycle with four of latency, at most.
_PANELS, _CHAINS = 4, 16
# Registers that a tile's sums may take, of 32.
_SUMS = 24
# Columns that a tile sums at a time, as in fp32 (`dense`), and groups of a panel that it prefetches ahead.
_COLUMNS, _AHEAD = 160, 128
_LANES = 4


def emit(scope: Scope, w: Buffer, scales: Buffer | None, n: int, row: int) -> None:
    """Emit y[row:] += W z[:n]."""
    with dots.scope(scope):
        z = Narrow(scope, n)
        (_stream if scope.width == 1 else _tile)(scope, w, scales, z, row)


def _stream(scope: Scope, w: Buffer, scales: Buffer | None, z: Narrow, row: int) -> None:
    dot = DOTS[scope.dot]
    parts, some = dot.rows // _LANES, z.size // dot.each  # groups of columns of a register of z

    def panels(first: Any, count: int) -> None:
        chains = 1 if dot.terms else max(1, _CHAINS // (count * parts))
        sums = Sums(scope, count * chains, parts)

        def groups(start: Expr, size: int) -> None:
            for g in range(size):
                if g % some == 0:
                    x = T.bind(z.stream((start + g) // some))
                for p in range(count):
                    weights = held(w[first + p, start + g, T.Ramp(0, 1, z.size)])
                    sums.add(p * chains + g % chains, weights, x, g % some)
            sums.flush()

        blocks(z.groups, dot.terms or some, groups)
        for p in range(count):
            for part, total in enumerate(sums.total(range(p * chains, (p + 1) * chains))):
                at = row + (first + p) * dot.rows + part * _LANES
                scope.accumulate(at, _scaled(total, scales, first + p, z))

    blocks(int(w.shape[0]), _PANELS, panels, scope.shared)


def _tile(scope: Scope, w: Buffer, scales: Buffer | None, z: Narrow, row: int) -> None:
    dot = DOTS[scope.dot]
    parts, vectors = z.streams // _LANES, z.vectors
    each = (parts + bool(dot.terms)) * vectors  # registers of the sums of a row
    rows = max(r for r in (1, 2, 4, 8) if r <= dot.rows and (r == 1 or r * each <= _SUMS))
    chains = 1 if dot.terms else max(1, _CHAINS // (rows * vectors * parts))
    # sums of integers are exact, and rounded once where their scale multiplies them
    some = z.groups if dot.values == "int8" else _COLUMNS // dot.each

    def chunk(panel: Expr, first: int, start: int) -> None:
        sums = Sums(scope, rows * vectors * chains, parts)

        def weights(at: Expr) -> Expr:
            prefetch(w, panel, at + _AHEAD, 0)
            return T.bind(held(w[panel, at, T.Ramp(0, 1, z.size)]))

        def groups(k: Expr, size: int) -> None:
            for u in range(size):
                at = start + k + u
                streams = [T.bind(z.tile(at, j)) for j in range(vectors)]
                values = weights(at)
                for r in range(rows):
                    for j, x in enumerate(streams):
                        sums.add((r * vectors + j) * chains + u % chains, x, values, first + r)
            sums.flush()

        def pairs(k: Expr, size: int) -> None:
            for u in range(size):
                at = start + 2 * (k + u)
                streams = [T.bind(z.tile(at + half, j)) for j in range(vectors) for half in range(2)]
                for p, values in enumerate(zipped(weights(at), weights(at + 1))):
                    for s, x in enumerate(streams):
                        sums.multiply((p * 2 * vectors + s) * chains + u % chains, values, x)

        def total(r: int, j: int) -> list[Expr]:
            if not dot.matrix:
                at = (r * vectors + j) * chains
                return sums.total(range(at, at + chains))
            at = (r // 2 * vectors + j) * 2 * chains
            halves = [T.bind(sums.total(range(at + h * chains, at + (h + 1) * chains))[0]) for h in range(2)]
            return [T.Shuffle(halves, [2 * (r % 2), 2 * (r % 2) + 1, 4 + 2 * (r % 2), 5 + 2 * (r % 2)])]

        count = min(some, z.groups - start)
        if dot.matrix:
            blocks(count // 2, chains, pairs)
        else:
            blocks(count, dot.terms or chains, groups)
        for r in range(rows):
            for j in range(vectors):
                for part, value in enumerate(total(r, j)):
                    v = j * parts + part
                    at = row + panel * dot.rows + first + r
                    scope.accumulate(at, _scaled(value, scales, panel, z, v), v)

    with split(int(w.shape[0]), scope.shared) as panel:
        for first in range(0, dot.rows, rows):
            for start in range(0, z.groups, some):
                chunk(panel, first, start)


def _scaled(total: Expr, scales: Buffer | None, panel: Expr, z: Narrow, vector: int = 0) -> Expr:
    """The sums with the scales of weights and streams, if they have some."""
    if scales is None:
        return total
    return total * (splat(scales[panel], _LANES) * z.scale(vector))
