"""The schedules of x86-64: SSE4 (v2), AVX2 (v3), AVX-512 (v4)."""

from __future__ import annotations

from tvm_doping.schedules import costs, weighing
from tvm_doping.schedules.layer import DENSE, Candidate, Declined, Layer
from tvm_doping.sparsity.values import ValueType
from tvm_doping.targets import Target

# Of a tile of two vectors of streams, times a tile of one: the index and the broadcast of a nonzero then serve both (measured,
# H = 650 and 1500, AVX2: sell16 1.4-1.55; AVX-512: csr 1.6, sell16 1.8; dense and Kronecker products have larger register tiles).
_PAIR: dict[str | None, tuple[float, float]] = {"csr": (1.5, 1.6), "sell16": (1.55, 1.8), DENSE: (1.75, 1.75)}
_PAIR_BLOCK = 1.7
# With AVX-512 two vectors of streams are twice as many bytes: beyond this share of the L2, half of a tile's inputs, they take so
# much longer (H = 1500: csr 1.86, sell16 2.2; H = 650, of 83 KB: as above).
_PAIR_SHARE, _PAIR_FAR = 0.125, 1.2
# A tile takes the rows of a SELL group one after the other, and each row touches every line of the group's values and indices:
# where they are more than this share of the L1, beside the streams of two vectors, each row fetches them anew and takes so much
# longer (measured: 1.26-1.4 times CSR at 5x, H = 650 and 1500; within 0.97-1.07 of it at 20x).
_GROUP_SHARE, _GROUP_AGAIN = 0.25, 1.25
_GROUP_ENTRY_BYTES = 16 * 6  # of a column of 16 slots


def choose(layer: Layer, target: Target, allowed: frozenset[str] | None = None) -> Candidate | Declined:
    """The candidate predicted to be fastest (among the `allowed` formats, where a user forces one)."""
    if not target.name.startswith("x86-64"):
        return Declined(reason=f"x86: {target.name} is not an x86-64 target")
    return weighing.choose(X86, layer, target, allowed)


def space(layer: Layer, target: Target) -> list[Candidate]:
    """Every way to run this product on this target, with its predicted cycles."""
    return weighing.space(X86, layer, target)


def _widths(layer: Layer, target: Target) -> tuple[tuple[int, int], ...]:
    """(lanes of a vector, vectors of a tile) to choose from: a batch that fits half a vector would leave half of a tile empty,
    one that fills more than one is mostly faster by two at a time."""
    lanes, half = target.lanes, target.lanes // 2
    if layer.batch > lanes:
        return ((lanes, 1), (lanes, 2))
    return ((half, 1), (lanes, 1)) if 1 < layer.batch <= half else ((lanes, 1),)


def _pair(name: str | None, vectors: int, layer: Layer, target: Target, dot: str) -> float:
    if vectors == 1:
        return 1.0
    group = _GROUP_ENTRY_BYTES * layer.sparse.nnz / layer.rows
    again = name == "sell16" and group > _GROUP_SHARE * target.l1
    wide = target.lanes == 16
    far = wide and layer.columns * target.lanes * vectors * 4 > _PAIR_SHARE * target.l2
    pair = _PAIR[name][wide] if name in _PAIR else _PAIR_BLOCK
    return pair * (_GROUP_AGAIN if again else 1.0) * (_PAIR_FAR if far else 1.0)


def _types(layer: Layer, target: Target) -> tuple[tuple[ValueType, ...], str]:
    """How values may be stored: in fp32, and as low as the precision allows where the CPU converts it in vectors."""
    if layer.precision == "exact":
        return ("fp32",), ""
    if layer.precision == "fp16" and not target.has("f16c"):
        return ("fp32",), f"; fp32 values, as {target.name} has no f16c to convert fp16"
    return ("fp32", layer.precision), ""


def _refusal(name: str, layer: Layer, target: Target) -> str | None:
    if name == "perm8" and not target.has("avx2"):
        return "vpermps needs avx2"
    if name in _FULL_WIDTH and not target.has("avx512f"):
        return "vpermi2ps and vexpandps need avx512f"
    if name == "perm64" and not target.has("avx512_bf16"):
        return "vdpbf16ps needs avx512_bf16"
    if name == "perm64" and layer.precision != "bf16":
        return f"it rounds S and x to bf16, which precision {layer.precision} does not allow"
    return None


_FULL_WIDTH = ("perm32", "perm32_expand", "perm2x32")  # written for AVX-512 registers
# Steps run as tiles of one vector: two were no faster at T = 35, where a second tile is for the most part padding, and their
# projections stay longer in the cache.
X86 = weighing.Kind(
    name="x86",
    estimates={
        "csr": costs.csr,
        "sell16": costs.sell16,
        "perm8": costs.perm8,
        "perm32": costs.perm32,
        "perm32_expand": costs.perm32_expand,
        "perm2x32": costs.perm2x32,
        "perm64": costs.perm64,
        "block4": costs.block(4),
        "block8": costs.block(8),
        "block16": costs.block(16),
    },
    refusal=_refusal,
    widths=_widths,
    registers=lambda target: 32 if target.lanes == 16 else 16,
    types=_types,
    pair=_pair,
    lanes={"sell16": 8, "perm8": 8, "block4": 4},
    full=_FULL_WIDTH,
)
