"""The schedules of 64-bit Arm: NEON, and of SVE its gather.

All cores have 32 registers of 4 fp32 lanes. A nonzero of S costs loads: its value and its index, of which one load brings
four, and its z, one each, so 1.5 loads, where the A53 and the A72 do one a cycle, the A76 and the Neoverse N1 two, the V1 and
the M1 three. Look-ups by `tbl` were weighed by llvm-mca and do not pay (docs/formats.md has the figures). fp16 arithmetic and
dot products of bf16 and int8 round inputs or sums, which no precision allows.
"""

from __future__ import annotations

from tvm_doping.kernels.plan import Gather
from tvm_doping.schedules import costs, weighing
from tvm_doping.schedules.layer import DENSE, Candidate, Declined, Layer
from tvm_doping.schedules.rates import CORES, rate
from tvm_doping.sparsity.values import ValueType
from tvm_doping.targets import Target

_LANES = 4


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
    return (("fp32",) if layer.precision == "exact" else ("fp32", layer.precision)), ""


def _refusal(name: str, layer: Layer, target: Target) -> str | None:
    return None


def _pair(name: str | None, vectors: int, layer: Layer, target: Target) -> float:
    if vectors == 1:
        return 1.0
    kind = name if name in ("csr", "sell16", DENSE) else "block" if name else DENSE
    return rate(f"{kind}_{vectors}", target)


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
    lanes={},
)
