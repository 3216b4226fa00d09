"""What CUDA kernels are predicted to take of a multiprocessor, in cycles, from counts. No GPU was at hand: what each number follows
from is stated with it, and none was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tvm_doping.kernels.cuda.parts import LOW_RANK, TENSOR, WARP, Cut, in_parts, needed
from tvm_doping.kernels.plan import Part
from tvm_doping.schedules.layer import Layer
from tvm_doping.sparsity.values import VALUE_BYTES, ValueType
from tvm_doping.targets import Target

# Bytes a cycle that a multiprocessor reads from its shared memory, and from the L2 (5.5 TB/s among 132 at 1.75 GHz).
_SHARED, _L2 = 128, 24
# Of the shared memory of a block, what its weights may take: z, sums and the first products of 32 streams take the rest.
_STAGED = 0.75
# What a low rank costs beside its products: a barrier of all blocks, or a launch; 1.5 us at 1.75 GHz.
_EXCHANGE = 2_600
# What a stream, or a tile of 32, takes of each product beside its sums: z comes from the L2 (300 cycles), and the block waits.
_ROUND = 500
# z of 32 lanes with a slot each, whose banks collide 3.5 times.
_COLLIDE = 3.5
# Of a nonzero for 32 streams: its value, its index and z, an access each.
_NONZERO = 3.0
# Of a tile of 16 x 16 on tensor cores for 8 streams: 512 bytes of values, a read of columns, and 4 reads of z from 4 places, half
# of which meet in a bank.
_MMA = 4 + 1 + 4 * 1.5
_LANES = 128  # FMAs, or other instructions of a thread, a cycle
# Of a value of a dense matrix for one stream: its load, that of z, the widening and the FMA, however few bytes it has.
_ISSUED = 4
# Warps that hide the latency of shared memory: a slot takes 5 cycles, and 60 until its index and then z are there.
_HIDING = 12
_BAND = 16


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a product runs: its structured part (in an order; of kind "dense": all of the weight) and the format of S."""

    part: Part
    format: str | None
    values: ValueType


@dataclass(frozen=True, kw_only=True)
class Load:
    """A layer cut into parts: the nonzeros of S, and the tiles of 16 x 16 that tensor cores make of them, in the part with most."""

    layer: Layer
    cut: Cut
    nonzeros: int
    tiles: int


def load_of(layer: Layer, cut: Cut) -> Load:
    """The layer's load in these parts."""
    if not layer.sparse.nnz:
        return Load(layer=layer, cut=cut, nonzeros=0, tiles=0)
    S, per_part = in_parts(layer.sparse, cut), cut.rows // _BAND
    row = np.repeat(np.arange(S.shape[0], dtype=np.int64), np.diff(S.indptr))
    columns = np.bincount(
        np.unique(row // _BAND * S.shape[1] + S.indices) // S.shape[1], minlength=cut.parts * per_part
    )
    tiles = int((-(-columns // _BAND)).reshape(cut.parts, per_part).sum(axis=1).max())
    nonzeros = int(np.add.reduceat(np.diff(S.indptr), np.arange(0, S.shape[0], cut.rows)).max())
    return Load(layer=layer, cut=cut, nonzeros=nonzeros, tiles=tiles)


def cycles(load: Load, way: Way, threads: int, target: Target, resident: bool) -> float:
    """Of one stream. resident: the weight is read in every step, and kept in shared memory where it fits."""
    layer, cut = load.layer, load.cut
    size = VALUE_BYTES[way.values]
    total = float(_ROUND)
    if way.part.kind == "dense":
        values = cut.rows * layer.columns
        total += values * _value(size, resident and values * size <= _STAGED * target.shared)
    elif way.part.kind == "kronecker":
        total += 8 * _multiplications(way.part, cut) / _SHARED  # a factor's value and z, or t
    elif way.part.kind in LOW_RANK:
        total += _multiplications(way.part, cut) * _value(size, resident)
        total += _EXCHANGE / (layer.batch * layer.steps)
    if way.format == TENSOR:
        total += _MMA * load.tiles
    elif way.format is not None:
        total += (size / 4 + 0.5 + _COLLIDE) * load.nonzeros / WARP
    return _rounds(cut, target) * _latency(threads) * total


def tile_cycles(load: Load, way: Way, threads: int, target: Target) -> float:
    """Of 32 streams side by side."""
    layer, cut = load.layer, load.cut
    total = float(_ROUND)
    if way.part.kind == "dense":
        total += cut.rows * layer.columns * WARP / _LANES
    elif way.part.kind != "zero":
        total += _multiplications(way.part, cut) * WARP / _LANES
        total += _EXCHANGE / -(-layer.batch * layer.steps // WARP) if way.part.kind in LOW_RANK else 0.0
    if way.format == TENSOR:
        total += 4 * _MMA * load.tiles
    elif way.format is not None:
        total += _NONZERO * load.nonzeros
    return _rounds(cut, target) * _latency(threads) * total


def stored_bytes(load: Load, way: Way) -> float:
    """Of the weight, indices included."""
    layer, cut = load.layer, load.cut
    size = VALUE_BYTES[way.values]
    (m, n), dims = layer.part.shape, way.part.dims
    if way.part.kind == "dense":
        return float(cut.parts * cut.rows * n * size)
    total = 0.0
    if way.part.kind == "kronecker":
        total = 4.0 * (dims[0] * dims[1] + dims[2] * dims[3])
    elif way.part.kind in LOW_RANK:
        total = float(size * (sum(dims) * n + m * dims[-1]))
    each = size + 2 / _BAND if way.format == TENSOR else size + 2
    stored = cut.parts * load.tiles * _BAND**2 if way.format == TENSOR else layer.sparse.nnz
    return total + each * stored


def _multiplications(part: Part, cut: Cut) -> float:
    """Of a part's rows with a structure, for one stream."""
    if part.kind == "kronecker":
        _, n1, _, n2 = part.dims
        first = needed(part, cut)[part.order == "right"]
        return first * n1 * n2 + cut.rows * (n2 if part.order == "left" else n1)
    inner = sum(part.dims)
    return -(-inner // cut.parts) * part.shape[1] + cut.rows * part.dims[-1]


def ordered(part: Part, cut: Cut) -> Part:
    """The part, of a Kronecker product in the order that multiplies less."""
    if part.kind != "kronecker":
        return part
    left, right = (replace(part, order=order) for order in ("left", "right"))  # type: ignore[arg-type]
    return left if _multiplications(left, cut) <= _multiplications(right, cut) else right


def _value(size: int, staged: bool) -> float:
    """Cycles of a value of so many bytes, in shared memory or the L2."""
    return max(size / (_SHARED if staged else _L2), _ISSUED / _LANES)


def _rounds(cut: Cut, target: Target) -> int:
    """Blocks that a multiprocessor takes one after the other."""
    return -(-cut.parts // max(1, target.multiprocessors))


def _latency(threads: int) -> float:
    return max(1.0, _HIDING / (threads // WARP))
