"""What a caller wants of logits: their largest, their k largest, or the probabilities that they stand for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tvm_doping.errors import InvalidInput

Kind = Literal["argmax", "log_softmax", "softmax", "top_k"]
KINDS: tuple[Kind, ...] = ("argmax", "log_softmax", "softmax")


@dataclass(frozen=True, kw_only=True)
class Head:
    """A function of logits (..., V) over their last axis.

    argmax       indices (...) int64, of equal logits the first;
    log_softmax  (..., V) float32; softmax the same, not its logarithm;
    top_k        values (..., k) float32 from the largest down, and their indices (..., k) int64.
    """

    kind: Kind
    k: int = 1

    def __str__(self) -> str:
        return f"top_k:{self.k}" if self.kind == "top_k" else self.kind

    @property
    def picks(self) -> bool:
        """Whether it gives indices."""
        return self.kind in ("argmax", "top_k")

    @classmethod
    def parse(cls, text: str) -> Head:
        """The head that is written "argmax", "log_softmax", "softmax" or "top_k:K"; InvalidInput for anything else."""
        for kind in KINDS:
            if text == kind:
                return cls(kind=kind)
        count = re.fullmatch(r"top_k:([1-9][0-9]{0,8})", text) if isinstance(text, str) else None
        if count is None:
            raise InvalidInput(
                "head",
                f"one of {', '.join(KINDS)}, top_k:K (K at least 1)",
                repr(text),
                "Choose one, or leave it out to get logits.",
            )
        return cls(kind="top_k", k=int(count[1]))
