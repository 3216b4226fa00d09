"""Doped weights as PyTorch parametrizations: W = structured + S * mask.

Each class is put on a weight with `torch.nn.utils.parametrize`; the parametrization's `original` is S (dense,
trained), the factors are parameters of the class itself, and `mask` says which entries of S exist. In
evaluation the value of the weight is literally `torch.kron(B, C) + S * mask` (or `U @ V + ...`, `cat([D, U @
V]) + ...`, `S * mask`): an exported graph then shows the structure to the compiler.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tvm_doping import structures


class DopedWeight(nn.Module):
    """W (m, n) = structured() + S * mask; in training with CMR each part's output rows are dropped on their
    own.

    mask              (m, n) bool: entries of S that exist;
    nonzeros          how many entries the mask keeps when annealing is over;
    pattern           which masks are allowed (a key of `sparsity.PATTERNS`);
    cmr_structured    probability that an output row of the structured part is dropped (training only,
                      inverted scaling);
    cmr_sparse        the same of the sparse part;
    dense_gradient    whether the closed entries of S get a gradient too (training only): the one they would have, were they
                      open.
    """

    kind: ClassVar[str]
    factor_names: ClassVar[tuple[str, ...]] = ()
    mask: Tensor

    def __init__(
        self, shape: tuple[int, int], factors: dict[str, np.ndarray], nonzeros: int, pattern: str
    ) -> None:
        super().__init__()
        for name in self.factor_names:
            values = torch.from_numpy(np.array(factors[name], dtype=np.float32, order="C"))
            self.register_parameter(name, nn.Parameter(values))
        self.register_buffer("mask", torch.ones(shape, dtype=torch.bool))
        self.nonzeros, self.pattern = nonzeros, pattern
        self.cmr_structured = self.cmr_sparse = 0.0
        self.dense_gradient = False

    def structured(self) -> Tensor:
        """The structured part (m, n), as an expression of the factors."""
        raise TypeError(f"{type(self).__name__} has no structured part")

    @property
    def factor_parameters(self) -> int:
        """How many numbers the factors have."""
        return sum(int(getattr(self, name).numel()) for name in self.factor_names)

    def forward(self, S: Tensor) -> Tensor:
        """The weight; S (m, n) float32."""
        structured, sparse = self.structured(), self.masked(S)
        if self.training and (self.cmr_structured or self.cmr_sparse):
            structured = structured * _kept_rows(S, self.cmr_structured)
            sparse = sparse * _kept_rows(S, self.cmr_sparse)
        return structured + sparse

    def masked(self, S: Tensor) -> Tensor:
        """S * mask: literally, unless closed entries are to get a gradient."""
        straight = self.training and self.dense_gradient
        return S - (S * ~self.mask).detach() if straight else S * self.mask

    def right_inverse(self, W: Tensor) -> Tensor:
        """The S that gives W where the mask is open: assigning to the weight leaves the factors alone."""
        return W - self.structured().detach()

    def structure(self, S: Tensor) -> structures.Doped:
        """The weight as `structures` has it: the mask applied, S sparse."""
        values = (S.detach() * self.mask).cpu().numpy().astype(np.float32)
        return structures.Doped(self.base(), values)

    def base(self) -> structures.Structure:
        """The structured part as `structures` has it."""
        arrays = {name: getattr(self, name).detach().cpu().numpy().copy() for name in self.factor_names}
        m, n = self.mask.shape
        return structures.FAMILIES[self.kind].from_arrays(arrays, (m, n))

    def extra_repr(self) -> str:
        m, n = self.mask.shape
        return f"{m}x{n}, pattern={self.pattern}, nonzeros={self.nonzeros}"


class KroneckerWeight(DopedWeight):
    """W = B (x) C + S * mask, with B (m1, n1), C (m2, n2), m = m1*m2, n = n1*n2."""

    kind = "kronecker"
    factor_names = ("B", "C")
    B: Tensor
    C: Tensor

    def structured(self) -> Tensor:
        return torch.kron(self.B, self.C)


class LowRankWeight(DopedWeight):
    """W = U V + S * mask, with U (m, r), V (r, n)."""

    kind = "low_rank"
    factor_names = ("U", "V")
    U: Tensor
    V: Tensor

    def structured(self) -> Tensor:
        return self.U @ self.V


class HybridWeight(DopedWeight):
    """W = [D ; U V] + S * mask: the first k rows of full rank, D (k, n), below them U (m-k, r), V (r, n)."""

    kind = "hybrid"
    factor_names = ("D", "U", "V")
    D: Tensor
    U: Tensor
    V: Tensor

    def structured(self) -> Tensor:
        return torch.cat([self.D, self.U @ self.V])


class ZeroWeight(DopedWeight):
    """W = S * mask: a merely pruned weight."""

    kind = "zero"

    def forward(self, S: Tensor) -> Tensor:
        W = self.masked(S)
        return W * _kept_rows(S, self.cmr_sparse) if self.training and self.cmr_sparse else W

    def right_inverse(self, W: Tensor) -> Tensor:
        return W


WEIGHTS: dict[str, type[DopedWeight]] = {
    cls.kind: cls for cls in (KroneckerWeight, LowRankWeight, HybridWeight, ZeroWeight)
}


def _kept_rows(like: Tensor, rate: float) -> Tensor:
    """(m, 1): 0 with probability `rate`, else 1 / (1 - rate), so that the expected row is the row itself."""
    ones = torch.ones(like.shape[0], 1, dtype=like.dtype, device=like.device)
    return nn.functional.dropout(ones, rate) if rate else ones
