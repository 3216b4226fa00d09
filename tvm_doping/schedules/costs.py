"""What a product costs, format by format, by the constants of the target in `rates`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse as sp

from tvm_doping.schedules.layer import Layer
from tvm_doping.schedules.rates import rate
from tvm_doping.sparsity.dots import DOTS, Dot
from tvm_doping.sparsity.formats.perm import PERM32, Reach
from tvm_doping.sparsity.formats.perm2x32 import Perm2x32
from tvm_doping.sparsity.formats.perm8 import Perm8
from tvm_doping.sparsity.formats.perm64 import Perm64
from tvm_doping.targets import Target

# Of a tile's inputs, how much of the L1 they may take: the weights pass through it.
_SHARE_OF_L1 = 0.7
_PAIRED = 0.68


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A product in one format, without its reading.

    cycles  of one stream; tile: of a tile of one stream a lane; stored: values, padding included; bytes, with fp32 values; why.
    dot     the instruction that multiplies narrow values as they are; "" where they are widened.
    """

    cycles: float
    tile: float
    stored: float
    bytes: float
    note: str
    params: dict[str, int] = field(default_factory=dict)
    dot: str = ""


NOTHING = Cost(cycles=0.0, tile=0.0, stored=0.0, bytes=0.0, note="S is empty")


def reading(size: float, whole: float, layer: Layer, target: Target) -> float:
    """Cycles to read so many bytes, of a `whole` weight's, from the cache that holds it, shared with the rest of a model unless the
    layer's weight is read again before that."""
    room = whole / rate("share_again" if layer.again else "share", target)
    level = "l2" if room < target.l2 else "l3" if room < target.l3 else "memory"
    return size / rate(level, target)


def structured(layer: Layer, target: Target, lanes: int, dot: str = "") -> Cost:
    """The structured part of a weight; dot: for dense matrices."""
    (m, n), dims = layer.part.shape, layer.part.dims
    if layer.part.kind == "kronecker":
        return _kronecker(dims, layer.part.order, target, lanes)
    products = {
        "zero": [],
        "dense": [(m, n)],
        "low_rank": [(dims[0], n), (m, dims[0])] if dims else [],
        "hybrid": [(dims[0], n), (dims[1], n), (m - dims[0], dims[1])] if len(dims) > 1 else [],
    }[layer.part.kind]
    costs = [_dense(rows, columns, target, lanes, dot) for rows, columns in products]
    return Cost(
        cycles=sum(c.cycles for c in costs),
        tile=sum(c.tile for c in costs),
        stored=sum(c.stored for c in costs),
        bytes=sum(c.bytes for c in costs),
        note="",
        dot=dot if costs else "",
    )


def dense(layer: Layer, target: Target, lanes: int, dot: str = "") -> Cost:
    """W = structured part + S, multiplied out: all of it is read, but in order and without indices."""
    return _dense(layer.rows, layer.columns, target, lanes, dot)


def _dense(rows: int, columns: int, target: Target, lanes: int, dot: str) -> Cost:
    if dot:
        return _dot(rows, columns, target, dot)
    panels = -(-rows // lanes)
    return Cost(
        cycles=rate("dense", target) * panels * columns + rate("dense_rows", target) * panels,
        tile=rate("dense_tile", target) * panels * lanes * columns,
        stored=float(panels * lanes * columns),
        bytes=4.0 * panels * lanes * columns,
        note="multiplied out",
    )


def _dot(rows: int, columns: int, target: Target, dot: str) -> Cost:
    """A dense matrix by dot products: registers of weights of one stream, rows and columns of a tile; inputs are rounded once."""
    how = DOTS[dot]
    panels, groups = -(-rows // how.rows), -(-columns // how.unit) * how.unit // how.each
    size, ends = panels * groups * how.rows * how.each, rate("dense_rows", target) * panels * how.rows / 4
    return Cost(
        cycles=rate(f"dense_{dot}", target) * panels * groups + ends + _rounding(columns / 4, target, how),
        tile=rate(f"dense_tile_{dot}", target) * size + _rounding(columns, target, how),
        stored=float(size),
        bytes=4.0 * size,
        note="multiplied out",
        dot=dot,
    )


def _rounding(vectors: float, target: Target, dot: Dot) -> float:
    """Cycles to round so many vectors of inputs."""
    return rate(f"round_{dot.values}", target) * vectors


def _kronecker(dims: tuple[int, ...], order: str, target: Target, lanes: int) -> Cost:
    """B (x) C in the order of its plan. For one stream the columns of C fill vectors, for a tile the streams do."""
    m1, n1, m2, n2 = dims
    n2v, m2v = -(-n2 // lanes), -(-m2 // lanes)
    left = order == "left"
    narrow = m2 < lanes and lanes % m2 == 0  # rows of Y share vectors (kernels.kronecker)
    second = -(-m1 * m2 // lanes) if narrow else m2v * m1
    alone = m1 * (n1 * n2v + n2 * m2v) if left else n1 * (m2v * n2 + second)
    together = m1 * n2 * (n1 + m2) if left else n1 * m2 * (n2 + m1)
    return Cost(
        cycles=rate("kronecker", target) * alone,
        tile=rate("kronecker_tile", target) * together,
        stored=0.0,
        bytes=4.0 * (m1 * n1 * (m2 if narrow else 1) + n2 * m2v * lanes),
        note="",
    )


def csr(layer: Layer, target: Target, lanes: int) -> Cost:
    """CSR, rows padded to whole groups of accumulators."""
    counts = np.diff(layer.sparse.indptr)
    padded = float((-(-counts // 4) * 4).sum())
    index = 2 if layer.columns <= 65536 else 4
    return Cost(
        cycles=rate("csr", target) * padded + rate("csr_row", target) * layer.rows,
        tile=_fma(layer, target, lanes) * padded + rate("csr_row_tile", target) * layer.rows,
        stored=padded,
        bytes=padded * (4 + index),
        note=f"{layer.sparse.nnz} nonzeros",
        params={"multiple": 4},
    )


def sell16(layer: Layer, target: Target, lanes: int) -> Cost:
    """SELL of 16 rows, sorted by length."""
    counts = np.sort(np.diff(layer.sparse.indptr))[::-1]
    slots = 16 * float(np.pad(counts, (0, -len(counts) % 16)).reshape(-1, 16).max(axis=1).sum())
    groups = -(-layer.rows // 16)
    return Cost(
        cycles=rate("sell16", target) * slots + rate("sell16_group", target) * groups,
        tile=_paired(layer, target, lanes) * slots + rate("sell16_group_tile", target) * groups,
        stored=slots,
        bytes=slots * 6,
        note=f"{layer.sparse.nnz / max(1.0, slots):.0%} of the slots filled",
    )


def perm8(layer: Layer, target: Target, lanes: int) -> Cost:
    """A register look-up of 8 lanes a slot, AVX2."""
    slot, group = rate("perm8", target), rate("perm8_group", target)
    return _look_up(
        layer, Perm8.reach, layer.slots8, slot, _fma(layer, target, lanes), group=group, index=0.5
    )


def perm32(layer: Layer, target: Target, lanes: int) -> Cost:
    """A register look-up of 16 lanes a slot, four loads."""
    return _look_up(layer, PERM32, layer.slots, 3.1, _fma(layer, target, lanes), row=1.2)


def perm32_expand(layer: Layer, target: Target, lanes: int) -> Cost:
    """The same with unpadded values: more a slot, the expansion, and an unaligned load that often crosses a cache line."""
    return _look_up(layer, PERM32, layer.slots, 4.0, _fma(layer, target, lanes), row=1.2, expanded=True)


def perm2x32(layer: Layer, target: Target, lanes: int) -> Cost:
    """Two entries a lane, whose look-ups share four registers of z."""
    return _look_up(layer, Perm2x32.reach, layer.slots2x32, 6.0, _fma(layer, target, lanes), row=1.2, least=1)


def perm64(layer: Layer, target: Target, lanes: int) -> Cost:
    """Two nonzeros a lane, in bf16.

    Measured on Zen 5, where a slot takes what one of perm32 takes. By llvm-mca's models Sapphire Rapids takes 2.5 times that (5.0
    cycles to 2.0), and its half as many slots would not pay in time.
    """
    return _look_up(layer, Perm64.reach, layer.slots64, 3.1, _fma(layer, target, lanes), row=1.2)


def block(rows: int) -> Callable[..., Cost]:
    """Blocks of so many rows by one column."""

    def estimate(layer: Layer, target: Target, lanes: int, dot: str = "") -> Cost:
        if dot:
            return _dot_blocks(layer, target, rows, dot)
        blocks = float(_count_blocks(layer.sparse, rows))
        each = rate("block", target) + rate("block_fma", target) * max(1.0, rows / lanes)
        return Cost(
            cycles=each * blocks + rate("block_group", target) * layer.rows / rows,
            tile=_paired(layer, target, lanes) * rate("tile_block", target) * blocks * rows,
            stored=blocks * rows,
            bytes=blocks * (rows * 4 + 2),
            note=f"{layer.sparse.nnz / max(1.0, blocks * rows):.0%} of the blocks' values are nonzeros",
        )

    return estimate


def _dot_blocks(layer: Layer, target: Target, rows: int, dot: str) -> Cost:
    """The same by dot products of `each` blocks of a band side by side, of which half a group a band is filled up."""
    how, blocks, bands = DOTS[dot], float(_count_blocks(layer.sparse, rows)), layer.rows / rows
    groups = blocks / how.each + (how.each - 1) / how.each * bands
    each = rate(f"block_{dot}", target) + rate(f"block_fma_{dot}", target) * rows / how.rows
    stored = groups * how.each * rows
    tile = rate(f"block_tile_{dot}", target) * stored + _rounding(layer.columns, target, how)
    return Cost(
        cycles=each * groups
        + rate("block_group", target) * bands
        + _rounding(layer.columns / 4, target, how),
        tile=tile,
        stored=stored,
        bytes=stored * 4 + groups * how.each * 2,
        note=f"{layer.sparse.nnz / max(1.0, stored):.0%} of the blocks' values are nonzeros",
        dot=dot,
    )


def _fma(layer: Layer, target: Target, lanes: int) -> float:
    """Cycles of an FMA of a tile of so many streams."""
    close = layer.columns * lanes * 4 < _SHARE_OF_L1 * target.l1
    return rate("tile" if close else "tile_l2", target)


def _paired(layer: Layer, target: Target, lanes: int) -> float:
    """The same of a format whose rows share registers where streams fill half of one (kernels.pairs; measured on Zen 5)."""
    return _fma(layer, target, lanes) * (_PAIRED if 2 * lanes == target.lanes == 16 else 1.0)


def _look_up(
    layer: Layer,
    reach: Reach,
    counts: tuple[int, int],
    slot: float,
    fma: float,
    *,
    group: float = 40.0,
    row: float = 2.5,
    index: float = 1.0,
    least: int = 2,
    expanded: bool = False,
) -> Cost:
    """The better of the two row orders. The rows of a trained S differ: with alike ones in a group, few lanes wait.

    counts: the slots of either order; `slot` cycles a slot (look-ups, FMAs and their loads), `group` a group (a mispredicted loop
    end), and `row` more a row where the sums of grouped rows have to be scattered to their places. index: bytes of one. A group
    is padded to `least` slots, or twice as many where it has 32 or more.
    """

    def cost(grouped: int) -> Cost:
        groups = -(-layer.rows // reach.lanes)
        slots = float(counts[grouped])
        multiple = 2 * least if slots >= 32 * groups else least
        slots += groups * (multiple - 1) / 2
        entries = slots * reach.lanes * reach.each
        fill = layer.sparse.nnz / max(1.0, entries)
        return Cost(
            cycles=slot * slots + (group + row * reach.lanes * grouped) * groups,
            tile=fma * entries,
            stored=float(layer.sparse.nnz) if expanded else entries,
            bytes=slots * 21 + 4.0 * layer.sparse.nnz if expanded else slots * 2 + entries * (4 + index),
            note=f"{fill:.0%} of the slots filled{', alike rows grouped' if grouped else ''}",
            params={"multiple": multiple, "grouped": grouped},
        )

    return min((cost(0), cost(1)), key=lambda c: c.cycles)


def _count_blocks(s: sp.csr_array, rows: int) -> int:
    row = np.repeat(np.arange(s.shape[0], dtype="int64"), np.diff(s.indptr))
    return len(np.unique(row // rows * s.shape[1] + s.indices))
