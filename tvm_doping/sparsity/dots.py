"""Products of narrow values and narrow inputs, as dot-product instructions compute them: what is rounded, and in what it is summed.

    y = W r(z)        W stored in fp16, bf16 or int8, r(z) the inputs rounded to the same type

Arm's instructions, a register of weights 16 bytes: `rows` rows by `each` columns. Sums are fp32, those of int8 int32 (exact);
but `fmla`, of cores that have no `fmlal`, sums sixteen products at a time in fp16, each sum rounded, before fp32 takes them over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tvm_doping.sparsity.formats.base import sum_runs
from tvm_doping.sparsity.values import Array, ValueType, round_bf16

# "": none, values are widened and inputs stay fp32. Of two for a type the better one is the first.
DotName = Literal["", "bfdot", "smmla", "sdot", "fmlal", "fmla"]
_INT8 = 127
# Inputs below are taken for 0: their scale would not be a normal number.
SMALLEST = 1e-30


@dataclass(frozen=True, kw_only=True)
class Dot:
    """An instruction.

    values   of W, and what z is rounded to;
    rows     by `each` columns: the weights of a register;
    matrix   whether dense tiles take the instruction of matrices (`bfmmla`, `smmla`): 2 rows times 2 streams at once;
    terms    products whose sum is fp16 before it is added in fp32; 0: sums are fp32 (int32 of int8) from the first on;
    formats  of S that it serves, beside dense matrices;
    feature  what the CPU must have, as /proc/cpuinfo names it.
    """

    values: ValueType
    rows: int
    each: int
    matrix: bool = False
    terms: int = 0
    formats: tuple[str, ...] = ()
    feature: str

    @property
    def unit(self) -> int:
        """Columns that dense matrices are filled up to whole numbers of."""
        return self.each * (1 + self.matrix)


_BLOCKS = ("block8", "block16")
DOTS: dict[str, Dot] = {
    "bfdot": Dot(values="bf16", rows=4, each=2, matrix=True, formats=("block4", *_BLOCKS), feature="bf16"),
    "smmla": Dot(values="int8", rows=4, each=4, matrix=True, feature="i8mm"),
    "sdot": Dot(values="int8", rows=4, each=4, feature="asimddp"),
    "fmlal": Dot(values="fp16", rows=8, each=1, formats=_BLOCKS, feature="asimdfhm"),
    "fmla": Dot(values="fp16", rows=8, each=1, terms=16, formats=_BLOCKS, feature="asimdhp"),
}


def round_inputs(z: Array, kind: ValueType) -> Array:
    """z (..., n) rounded to nearest, ties to even, as float32.

    int8: each vector with a scale of its own, its largest magnitude over 127; one that holds a number that is not finite becomes
    NaN. fp16: what is beyond 65519 becomes infinite.
    """
    z = np.asarray(z, np.float32)
    if kind == "fp32":
        return z
    if kind == "bf16":
        return round_bf16(z)
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "fp16":
            return z.astype(np.float16).astype(np.float32)
        peak = np.abs(z).max(axis=-1, keepdims=True, initial=0.0)
        peak = np.where(np.isfinite(peak), peak, np.float32(np.nan))
        none = peak <= SMALLEST
        scale = np.where(none, np.float32(1), peak / np.float32(_INT8))
        inverse = np.where(none, np.float32(1), np.float32(_INT8) / np.where(none, np.float32(1), peak))
        rounded: Array = np.rint(z * inverse) * scale
        return rounded


def product(dot: Dot, W: Array, z: Array) -> Array:
    """y (..., m) = W r(z) for W (m, n), as stored, and z (..., n)."""
    z = round_inputs(z, dot.values)
    if not dot.terms:
        return z @ W.T
    return runs(dot, np.ascontiguousarray(W.T), z, np.array([0, W.shape[1]]))[..., 0, :]


def runs(dot: Dot, columns: Array, z: Array, pointers: Array) -> Array:
    """(..., R, b): for each of R runs the sum of columns[k] z[..., k], columns (K, b), `terms` at a time in fp16."""
    lengths = np.diff(pointers)
    place = np.arange(pointers[-1]) - np.repeat(pointers[:-1], lengths)
    first = np.concatenate([[0], np.cumsum(-(-lengths // dot.terms))])
    group = np.repeat(first[:-1], lengths) + place // dot.terms
    sums = np.zeros((*z.shape[:-1], first[-1], columns.shape[1]), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for term in range(dot.terms):
            some = np.flatnonzero(place % dot.terms == term)
            # in float64 the product is exact, and so is mostly the sum, before it is rounded once
            added = sums[..., group[some], :] + z[..., some, None].astype(np.float64) * columns[some]
            sums[..., group[some], :] = added.astype(np.float16)
    return sum_runs(sums, first, axis=-2)
