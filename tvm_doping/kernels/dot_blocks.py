"""y += S z for S in blocks of narrow values (`formats.block`) by a dot-product instruction: z rounded once, then as in fp32.

bf16 takes two columns at once, whose blocks lie side by side, fp16 one: a register of weights is four rows by two columns, or
eight rows. For one stream all lanes hold the columns' z, for a tile one row's weights.
"""

from __future__ import annotations

from typing import Any

from tvm_doping._tvm import T
from tvm_doping.kernels import dots
from tvm_doping.kernels.dots import Narrow, Sums, held
from tvm_doping.kernels.emit import Expr, address, load, split
from tvm_doping.kernels.plan import Product
from tvm_doping.kernels.scope import Scope
from tvm_doping.sparsity.dots import DOTS

# Accumulators of a stream, and registers that a tile's sums may take, of 32.
_CHAINS, _SUMS = 16, 24
_LANES = 4


def stream(product: Product, scope: Scope) -> None:
    """One stream."""
    with dots.scope(scope):
        z = Narrow(scope, product.columns)
        blocks = _Blocks(scope, z)
        parts = blocks.dot.rows // _LANES
        unroll = blocks.dot.terms or max(1, _CHAINS // (blocks.registers * parts))
        chains = 1 if blocks.dot.terms else unroll
        with split(blocks.bands, scope.shared) as band:
            sums = Sums(scope, blocks.registers * chains, parts)

            def one(at: Expr, u: int, sums: Sums = sums) -> None:
                x = T.bind(z.gathered(blocks.columns_of(at)))
                for r in range(blocks.registers):
                    sums.add(r * chains + u % chains, blocks.weights(at, r), x)

            blocks.walk(band, unroll, one, sums)
            for r in range(blocks.registers):
                for part, total in enumerate(sums.total(range(r * chains, (r + 1) * chains))):
                    row = band * blocks.rows + r * blocks.dot.rows + part * _LANES
                    scope.accumulate(row, total)


def tile(product: Product, scope: Scope) -> None:
    """A tile of streams: as many rows together as there are registers for, the blocks once for each such part of their rows."""
    with dots.scope(scope):
        z = Narrow(scope, product.columns, apart=True)
        blocks = _Blocks(scope, z)
        parts, vectors = z.streams // _LANES, z.vectors
        each = (parts + bool(blocks.dot.terms)) * vectors
        rows = max(r for r in (1, 2, 4, 8) if r <= blocks.dot.rows and (r == 1 or r * each <= _SUMS))
        with split(blocks.bands, scope.shared) as band:
            for first in range(0, blocks.rows, rows):
                sums = Sums(scope, rows * vectors, parts)
                register, lane = divmod(first, blocks.dot.rows)

                def one(
                    at: Expr, u: int, sums: Sums = sums, register: int = register, lane: int = lane
                ) -> None:
                    columns = blocks.columns_of(at)
                    streams = [T.bind(z.gathered(columns, j)) for j in range(vectors)]
                    weights = T.bind(blocks.weights(at, register))
                    for r in range(rows):
                        for j, x in enumerate(streams):
                            sums.add(r * vectors + j, x, weights, lane + r)

                blocks.walk(band, blocks.dot.terms or 1, one, sums)
                for r in range(rows):
                    for j in range(vectors):
                        at = r * vectors + j
                        for part, total in enumerate(sums.total(range(at, at + 1))):
                            scope.accumulate(band * blocks.rows + first + r, total, j * parts + part)


class _Blocks:
    """The arrays of S, and the loop over the blocks of a band."""

    def __init__(self, scope: Scope, z: Narrow) -> None:
        self.pointers, self.columns, self.values = (
            scope.arrays["S." + name] for name in ("block_ptr", "columns", "values")
        )
        self.dot, self.size = DOTS[scope.dot], z.size
        self.registers = int(self.values.shape[1]) // self.size  # of weights
        self.rows, self.bands = self.registers * self.dot.rows, int(self.pointers.shape[0]) - 1

    def columns_of(self, at: Expr) -> list[Expr]:
        each = self.dot.each
        return [address(self.columns[at] if each == 1 else self.columns[at, i]) for i in range(each)]

    def weights(self, at: Expr, register: int) -> Expr:
        return held(load(self.values, register * self.size, self.size, at))

    def walk(self, band: Expr, unroll: int, one: Any, sums: Sums) -> None:
        """one(block, its number below `unroll`) for each block of the band; sums are flushed after each `unroll`."""
        first = address(self.pointers[band])
        count = T.bind(address(self.pointers[band + 1]) - first)
        with T.serial(0, count // unroll) as k:
            for u in range(unroll):
                one(first + k * unroll + u, u)
            sums.flush()
        if unroll > 1:
            with T.serial(0, count % unroll) as k:
                one(first + count // unroll * unroll + k, 0)
            sums.flush()
