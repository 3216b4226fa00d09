"""The schedules of NVIDIA GPUs: how a layer's rows are divided among the multiprocessors, and how S is stored.

Not tuned: no GPU was at hand when they were written. What they follow from is stated with each number.
"""

from __future__ import annotations

from typing import Any

from tvm_doping.errors import ScheduleError
from tvm_doping.kernels.cuda.parts import FORMAT, Cut, needed
from tvm_doping.kernels.plan import Config, Grid, LinearPlan, LstmPlan, Part, Product
from tvm_doping.schedules.layer import Layer
from tvm_doping.sparsity.values import ValueType
from tvm_doping.targets import Target

# Warps enough to hide the latency of shared memory (about 30 cycles, an instruction every other cycle of four schedulers), and
# registers enough for each thread: 65,536 / 512 = 128.
_THREADS, _REGISTERS = 512, 65_536
# Lanes of a tile that streams must fill to be worth it: its sums take one pass over S, and a stream alone takes one too, but with
# 32 rows side by side, whose reads of h collide in the banks of shared memory (3.5 of 32 on average).
_TILE_FROM = 8
# Dense where S would hold so large a part of the weight: a slot reads a value, an index and, at an address of its own, z.
_DENSE_FROM = 0.4


def choose_lstm(
    layers: list[Layer], *, hidden: int, reverse: bool, target: Target, force: dict[str, Any] | None
) -> LstmPlan:
    """The plan of an LSTM layer: layers are its W_ih and W_hh. ScheduleError for a format that no kernel here reads."""
    parts = _parts(hidden, target)
    products = [_product(layer, target, force, parts, hidden) for layer in layers]
    return LstmPlan(
        inputs=layers[0].columns,
        hidden=hidden,
        reverse=reverse,
        input=products[0][0],
        recurrent=products[1][0],
        config=_config(parts, target),
        reason=f"{parts} blocks of {-(-hidden // parts)} units; W_ih: {products[0][1]}; W_hh: {products[1][1]}",
    )


def choose_linear(layer: Layer, *, target: Target, force: dict[str, Any] | None) -> LinearPlan:
    """The plan of a linear layer: several rounds of blocks where it has many rows, of a group of 32 or more each."""
    parts = max(1, min(-(-layer.rows // 32), 4 * target.multiprocessors))
    product, why = _product(layer, target, force, parts, layer.rows, gates=1)
    return LinearPlan(
        inputs=layer.columns,
        outputs=layer.rows,
        product=product,
        config=_config(parts, target),
        reason=f"{parts} blocks of {-(-layer.rows // parts)} rows; {why}",
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
    layer: Layer, target: Target, force: dict[str, Any] | None, parts: int, units: int, gates: int = 4
) -> tuple[Product, str]:
    forced = (force or {}).get("format")
    if forced not in (None, FORMAT):
        raise ScheduleError(
            f"the format {forced} for a {layer.rows} x {layer.columns} weight on {target.name}",
            f"a format that CUDA kernels read: {FORMAT}",
            f"cuda: no such format (there is {FORMAT}, which holds blocks and n:m patterns without padding)",
            "Leave the choice to the schedules.",
        )
    values: ValueType = "fp32" if layer.precision == "exact" else layer.precision
    density = layer.sparse.nnz / (layer.rows * layer.columns)
    part = layer.part
    narrow = part.kind in ("kronecker", "zero") and layer.columns <= 65536
    if not narrow or (density > _DENSE_FROM and forced is None and (force or {}).get("structure") != "kept"):
        why = "multiplied out" if part.kind != "dense" else "dense"
        return Product(part=Part(kind="dense", shape=part.shape), values=values), why
    if part.kind == "kronecker":
        left, right = needed(part, Cut(units=units, gates=gates, parts=parts))
        part = Part(
            kind=part.kind, shape=part.shape, dims=part.dims, order="left" if left <= right else "right"
        )
    sparse = FORMAT if layer.sparse.nnz else None
    return Product(
        part=part, sparse=sparse, nnz=int(layer.sparse.nnz), values=values if sparse else "fp32"
    ), ("rows of S in groups of a warp" if sparse else "no S")
