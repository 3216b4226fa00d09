"""The schedules of 64-bit Arm: NEON, and of SVE its gather.

All cores have 32 registers of 4 fp32 lanes. A nonzero of S costs loads: its value and its index, of which one load brings
four, and its z, one each, so 1.5 loads, where the A53 and the A72 do one a cycle, the A76 and the Neoverse N1 two, the V1 and
the M1 three. Look-ups by `tbl` were weighed by llvm-mca and do not pay (docs/formats.md has the figures).

Narrow values are multiplied as they are where the core has an instruction for it (sparsity.dots) and the precision allows them: it
then rounds the inputs of dense matrices, and of blocks, as well. A bf16 register holds twice as many weights as one of fp32, an
int8 one four times, and nothing has to be widened. Of two instructions for a type the first is taken: `smmla` before `sdot`, which
is as fast for one stream and half as fast for tiles, and `fmlal`, whose sums are fp32, before `fmla`, whose first sums are fp16.
"""

from __future__ import annotations

from typing import get_args

from tvm_doping.kernels.plan import Gather
from tvm_doping.schedules import costs, weighing
from tvm_doping.schedules.layer import DENSE, Candidate, Declined, Layer
from tvm_doping.schedules.rates import CORES, rate
from tvm_doping.sparsity.dots import DOTS, DotName
from tvm_doping.sparsity.values import ValueType
from tvm_doping.targets import Target

_LANES = 4
_MOST_COLUMNS = 2**17  # times 127^2


def choose(layer: Layer, target: Target, allowed: frozenset[str] | None = None) -> Candidate | Declined:
    """The candidate predicted to be fastest (among the `allowed` formats, where a user forces one)."""
    if target.name not in CORES:
        return Declined(reason=f"arm: {target.name} is not one of {', '.join(CORES)}")
    return weighing.choose(ARM, layer, target, allowed)


def space(layer: Layer, target: Target) -> list[Candidate]:
    """Every way to run this product on this target, with its predicted cycles."""
    return weighing.space(ARM, layer, target)


def _widths(layer: Layer, target: Target) -> tuple[tuple[int, int], ...]:
    """Tiles of as many vectors as a batch fills: 32 registers hold the sums of four, whose FMAs share a nonzero's loads."""
    return tuple(
        (_LANES, vectors) for vectors in (1, 2, 4) if vectors == 1 or layer.batch > _LANES * vectors // 2
    )


def _types(layer: Layer, target: Target) -> tuple[tuple[ValueType, ...], str]:
    """As low as the precision allows: every core converts fp16 in vectors (`fcvtl`), and widens bf16 and int8."""
    if layer.precision == "exact":
        return ("fp32",), ""
    lacks = "" if _dots(layer, target) else f"; {target.name} has no product of {layer.precision} for it"
    return ("fp32", layer.precision), lacks


def _dots(layer: Layer, target: Target) -> tuple[DotName, ...]:
    """The best instruction that the core has for the precision. Of int8 a sum of more columns than that might not fit 32 bits."""
    if layer.precision == "int8" and layer.columns > _MOST_COLUMNS:
        return ()
    return tuple(
        name
        for name in get_args(DotName)[1:]
        if DOTS[name].values == layer.precision and target.has(DOTS[name].feature)
    )[:1]


def _refusal(name: str, layer: Layer, target: Target) -> str | None:
    return None


def _pair(name: str | None, vectors: int, layer: Layer, target: Target, dot: str) -> float:
    if vectors == 1:
        return 1.0
    kind = name if name in ("csr", "sell16", DENSE) else "block" if name else DENSE
    return rate(f"{kind}_{dot}_{vectors}" if dot else f"{kind}_{vectors}", target)


def _gather(target: Target) -> Gather:
    return "sve" if target.has("sve") else "lanes"


# Steps run as tiles of two vectors: the loads of a nonzero serve eight, and their inputs still fit an L1 of 32 KB (H = 650).
ARM = weighing.Kind(
    name="arm",
    estimates={
        "csr": costs.csr,
        "sell16": costs.sell16,
        "block4": costs.block(4),
        "block8": costs.block(8),
        "block16": costs.block(16),
    },
    refusal=_refusal,
    widths=_widths,
    registers=lambda target: 32,
    types=_types,
    pair=_pair,
    steps=2,
    gather=_gather,
    dots=_dots,
    lanes={},
)
