"""The schedules of NVIDIA GPUs: how a layer's rows are divided among the multiprocessors, and how S is stored.

Not tuned: no GPU was at hand when they were written. What they follow from is stated with each number; what is compared are
predictions from counts, in cycles of a multiprocessor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_doping.errors import ScheduleError
from tvm_doping.kernels.cuda.parts import FORMAT, LOW_RANK, TENSOR, WARP, Cut, in_parts, needed
from tvm_doping.kernels.plan import Config, Grid, LinearPlan, LstmPlan, Part, Product
from tvm_doping.schedules.layer import Layer
from tvm_doping.sparsity.values import VALUE_BYTES, ValueType
from tvm_doping.targets import Target

# Warps enough to hide the latency of shared memory (about 30 cycles, an instruction every other cycle of four schedulers), and
# registers enough for each thread: 65,536 / 512 = 128.
_THREADS, _REGISTERS = 512, 65_536
# Lanes of a tile that streams must fill to be worth it: its sums take one pass over S, and a stream alone takes one too, but with
# 32 rows side by side, whose reads of h collide in the banks of shared memory (3.5 of 32 on average).
_TILE_FROM = 8
# Dense where S would hold so large a part of the weight: a slot reads a value, an index and, at an address of its own, z.
_DENSE_FROM = 0.4
# Bytes a cycle that a multiprocessor reads from its shared memory, and from the L2 (5.5 TB/s among 132 at 1.75 GHz).
_SHARED, _L2 = 128, 24
# Of the shared memory of a block, what its weights may take: z, sums and the first products of 32 streams take the rest.
_STAGED = 0.75
# What a low rank costs beside its products: a barrier of all blocks, or a launch; 1.5 us at 1.75 GHz.
_EXCHANGE = 2_600
# Of 32 lanes with a slot each: their values, half as many bytes of indices, and z, whose banks collide 3.5 times.
_SLOTS = 5.0
# Of a nonzero for 32 streams: its value, its index and z, an access each.
_NONZERO = 3.0
# Of a tile of 16 x 16 on tensor cores for 32 streams: four products of 8 streams, each with 512 bytes of values, a read of columns,
# and 4 reads of z from 4 places, half of which meet in a bank.
_MMA = 4 * (4 + 1 + 4 * 1.5)
_LANES = 128  # FMAs a cycle
# Tensor cores round z too: they are taken where that is predicted to be so many times as fast.
_WORTH_ROUNDING = 2.0


def choose_lstm(
    layers: list[Layer], *, hidden: int, reverse: bool, target: Target, force: dict[str, Any] | None
) -> LstmPlan:
    """The plan of an LSTM layer: layers are its W_ih and W_hh. ScheduleError for a format that no kernel here reads."""
    cut = Cut(units=hidden, gates=4, parts=_parts(hidden, target))
    resident = (False, True)  # W_hh is read in every step
    products = [
        _product(layer, target, force, cut, keep) for layer, keep in zip(layers, resident, strict=True)
    ]
    return LstmPlan(
        inputs=layers[0].columns,
        hidden=hidden,
        reverse=reverse,
        input=products[0][0],
        recurrent=products[1][0],
        config=_config(cut.parts, target),
        reason=f"{cut.parts} blocks of {cut.each} units; W_ih: {products[0][1]}; W_hh: {products[1][1]}",
    )


def choose_linear(layer: Layer, *, target: Target, force: dict[str, Any] | None) -> LinearPlan:
    """The plan of a linear layer: several rounds of blocks where it has many rows, of a group of 32 or more each."""
    parts = max(1, min(-(-layer.rows // 32), 4 * target.multiprocessors))
    cut = Cut(units=layer.rows, gates=1, parts=parts)
    product, why = _product(layer, target, force, cut, False)
    return LinearPlan(
        inputs=layer.columns,
        outputs=layer.rows,
        product=product,
        config=_config(parts, target),
        reason=f"{parts} blocks of {cut.each} rows; {why}",
    )


def _parts(units: int, target: Target) -> int:
    """A block for each multiprocessor, of as many units as that takes, and no block without any."""
    each = -(-units // target.multiprocessors)
    return -(-units // each)


def _config(parts: int, target: Target) -> Config:
    grid = Grid(
        parts=parts,
        threads=_THREADS,
        tile_from=_TILE_FROM,
        shared=target.shared,
        registers=_REGISTERS // _THREADS,
    )
    return Config(lanes=1, registers=0, grid=grid)


def _product(
    layer: Layer, target: Target, force: dict[str, Any] | None, cut: Cut, resident: bool
) -> tuple[Product, str]:
    force = force or {}
    values: ValueType = "fp32" if layer.precision == "exact" else layer.precision
    _check_format(layer, force.get("format"), values, target)
    part = layer.part
    kept, counts = _kept(layer, values, target, cut, resident)
    forced = force.get("format") is not None or force.get("structure") == "kept"
    if part.kind == "dense" or layer.columns > 65536 or not (kept or forced):
        why = "dense" if part.kind == "dense" else f"multiplied out{counts}"
        return Product(part=Part(kind="dense", shape=part.shape), values=values), why
    if part.kind == "kronecker":
        left, right = needed(part, cut)
        part = Part(
            kind=part.kind, shape=part.shape, dims=part.dims, order="left" if left <= right else "right"
        )
    sparse, how = _format(layer, values, force.get("format"), cut)
    stored = values if sparse or part.kind in LOW_RANK else "fp32"
    structure = (
        f"{part.kind} kept{counts}{'' if kept else ', as was asked for'}; " if part.kind in LOW_RANK else ""
    )
    return Product(part=part, sparse=sparse, nnz=int(layer.sparse.nnz), values=stored), f"{structure}{how}"


def _check_format(layer: Layer, forced: str | None, values: ValueType, target: Target) -> None:
    what = f"the format {forced} for a {layer.rows} x {layer.columns} weight on {target.name}"
    if forced not in (None, FORMAT, TENSOR):
        raise ScheduleError(
            what,
            f"a format that CUDA kernels read: {FORMAT}, {TENSOR}",
            f"cuda: no such format (there is {FORMAT}, which holds blocks and n:m patterns without padding)",
            "Leave the choice to the schedules.",
        )
    if forced == TENSOR and values not in ("fp16", "bf16"):
        raise ScheduleError(
            what,
            "values in fp16 or bf16, which tensor cores multiply",
            f"cuda: values in {values}",
            "Compile with precision fp16 or bf16, or leave the choice to the schedules.",
        )


def _kept(layer: Layer, values: ValueType, target: Target, cut: Cut, resident: bool) -> tuple[bool, str]:
    """Whether the structure is kept where nothing is forced, and what was counted."""
    (_, n), kind = layer.part.shape, layer.part.kind
    density = layer.sparse.nnz / (layer.rows * layer.columns)
    if kind not in LOW_RANK or density > _DENSE_FROM:
        return density <= _DENSE_FROM, ""
    inner = sum(layer.part.dims)
    size, streams = VALUE_BYTES[values], layer.batch * layer.steps
    dense = cut.rows * n
    both = -(-inner // cut.parts) * n + cut.rows * layer.part.dims[-1]
    nonzeros = layer.sparse.nnz / cut.parts
    if streams < _TILE_FROM:
        room = resident and dense * size <= _STAGED * target.shared
        out = streams * dense * size / (_SHARED if room else _L2)
        within = _EXCHANGE + streams * (
            both * size / (_SHARED if resident else _L2) + _SLOTS * nonzeros / WARP
        )
    else:
        tiles = -(-streams // WARP)
        out = tiles * dense * WARP / _LANES
        within = _EXCHANGE + tiles * (both * WARP / _LANES + _NONZERO * nonzeros)
    return within < out, f" (predicted {within:,.0f} cycles a block, {out:,.0f} multiplied out)"


def _format(layer: Layer, values: ValueType, forced: str | None, cut: Cut) -> tuple[str | None, str]:
    """The format of S, and why."""
    if not layer.sparse.nnz:
        return None, "no S"
    rows = "rows of S in groups of a warp"
    streams = layer.batch * layer.steps
    if forced == FORMAT or values not in ("fp16", "bf16"):
        return FORMAT, rows
    if forced is None and streams < _TILE_FROM:
        return FORMAT, rows
    S, per_part = in_parts(layer.sparse, cut), cut.rows // 16
    row = np.repeat(np.arange(S.shape[0], dtype=np.int64), np.diff(S.indptr))
    columns = np.bincount(
        np.unique(row // 16 * S.shape[1] + S.indices) // S.shape[1], minlength=cut.parts * per_part
    )
    tiles = int((-(-columns // 16)).reshape(cut.parts, per_part).sum(axis=1).max())
    nonzeros = int(np.add.reduceat(np.diff(S.indptr), np.arange(0, S.shape[0], cut.rows)).max())
    on_tensor, on_lanes = _MMA * tiles, _NONZERO * nonzeros
    counts = (
        f"{tiles} tiles of 16 x 16 in the largest block, predicted {on_tensor:,.0f} cycles for 32 streams"
    )
    if forced == TENSOR or _WORTH_ROUNDING * on_tensor <= on_lanes:
        return TENSOR, f"S on tensor cores: {counts}, {on_lanes:,.0f} a nonzero at a time"
    return (
        FORMAT,
        f"{rows}: predicted {on_lanes:,.0f} cycles for 32 streams, {on_tensor:,.0f} on tensor cores",
    )
