"""The numbers that a CUDA kernel may be given: blocks, threads, when streams run side by side, each with why it is tried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tvm_doping.kernels.cuda.parts import WARP, Cut
from tvm_doping.kernels.cuda.room import room
from tvm_doping.kernels.plan import Grid, Product
from tvm_doping.targets import Target

_REGISTERS = 65_536  # of a multiprocessor
# What the kernel that needs most of them takes of a thread (79, as ptxas counts), in the eights that they are given out in.
_NEEDED = 80
# Threads of a block, the reasoned number first: 16 warps hide the latency of shared memory (about 30 cycles, an instruction every
# other cycle of four schedulers). Fewer wait less for each other, more bring more loads under way.
THREADS: tuple[int, ...] = (512, 384, 256, 768)
# Streams from which 32 run side by side. Its sums take one pass over S, and a stream alone takes one too, but with 32 rows side by
# side, whose reads of h collide in the banks of shared memory (3.5 of 32 on average).
TILE_FROM: tuple[int, ...] = (8, 4, 2, 16, 32)
MOST_COLUMNS = 65_536  # that the indices of S count
_BAND = 16  # rows of a tile of tensor cores
_ROUNDS = (4, 1, 2, 8)  # of blocks that a linear layer takes one after the other on a multiprocessor


@dataclass(frozen=True, kw_only=True)
class Option:
    """A grid, and why it is tried."""

    grid: Grid
    reason: str


def grid_of(parts: int, threads: int, tile_from: int, shared: int) -> Grid:
    """With the limits of a target: so many bytes of shared memory, and the registers of a multiprocessor among the threads."""
    registers = _REGISTERS // threads
    return Grid(parts=parts, threads=threads, tile_from=tile_from, shared=shared, registers=registers)


def tight(units: int, parts: int) -> int:
    """At most so many parts, none of them empty: those that as many units a part as that takes make."""
    return -(-units // -(-units // parts))


def options(units: int, gates: int, target: Target) -> Iterator[Option]:
    """The grids for `units` of `gates` gates (1: the rows of a linear layer), the reasoned one first."""
    for parts, why in _parts(units, gates, target).items():
        for threads in THREADS:
            for tile_from in TILE_FROM:
                said = f"{parts} blocks of {-(-units // parts)} {'units' if gates > 1 else 'rows'} ({why})"
                yield Option(
                    grid=grid_of(parts, threads, tile_from, target.shared),
                    reason=f"{said}, {threads} threads, 32 streams side by side from {tile_from} on",
                )


def why_not(grid: Grid, products: Sequence[Product], units: int, gates: int, target: Target) -> str | None:
    """Which limit of the target a grid breaks for a layer with these products; None where it breaks none."""
    if gates > 1 and grid.parts > target.multiprocessors:
        return f"{grid.parts} blocks that wait for each other, of which {target.multiprocessors} run at once"
    if tight(units, grid.parts) != grid.parts:
        return f"{grid.parts} blocks, of which {units} rows fill {tight(units, grid.parts)}"
    if grid.threads * _NEEDED > _REGISTERS:
        return f"{grid.threads} threads of at least {_NEEDED} registers, of which there are {_REGISTERS}"
    needs = room(products, Cut(units=units, gates=gates, parts=grid.parts), grid.threads)
    if needs > target.shared:
        return f"{needs} bytes of shared memory a block, of which there are {target.shared}"
    return None


def _parts(units: int, gates: int, target: Target) -> dict[int, str]:
    """How many blocks, and why."""
    found: dict[int, str] = {}
    if gates == 1:
        # rows in groups of a warp, several rounds of blocks where there are many
        for rounds in _ROUNDS:
            each = -(-units // (WARP * target.multiprocessors * rounds)) * WARP
            found.setdefault(-(-units // each), f"whole warps of rows, {rounds} rounds at most")
        return found
    each = -(-units // target.multiprocessors)
    for step, why in (
        (each, "one a multiprocessor"),
        (_whole(each, _BAND // gates), f"rows in whole tiles of {_BAND}"),
        (_whole(each, WARP // gates), f"rows in whole warps of {WARP}"),
        (2 * each, "half as many: they wait for fewer"),
    ):
        found.setdefault(-(-units // step), why)
    return found


def _whole(each: int, of: int) -> int:
    return -(-each // of) * of
