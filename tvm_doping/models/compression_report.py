"""What compressing a model costs and gains, weight by weight and in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from tvm_doping.models.moments import Moments
from tvm_doping.sparsity import pack
from tvm_doping.structures import Doped, describe

_FORMATS = ("csr", "block4", "block8", "block16")  # those that pad nothing, for any S and for blocks


@dataclass(frozen=True, kw_only=True)
class WeightReport:
    """One doped weight W (m, n), W' what it has become.

    error         ||W - W'|| / ||W|| of the nearest structured part plus S;
    output_error  ||X (W - W')^T|| / ||X W^T|| over the vectors X that W multiplies on the samples, rows looked up likewise; None
                  without samples;
    bytes         of the factors in fp32, and of S in `format`; a target's schedule may choose another (`tvm-doping inspect`).
    The others, after the fine-tuning; None where there was none.
    """

    name: str
    structure: str
    shape: tuple[int, int]
    dense_parameters: int
    parameters: int
    dense_bytes: int
    bytes: int
    format: str
    error: float
    output_error: float | None
    finetuned_error: float | None = None
    finetuned_output_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All doped weights, and the whole model with what stayed dense.

    output_error: ||y - y'|| / ||y|| of the model's first output over the samples.
    """

    weights: tuple[WeightReport, ...]
    dense_parameters: int
    parameters: int
    dense_bytes: int
    bytes: int
    output_error: float | None
    finetuned_output_error: float | None = None

    @property
    def by_parameters(self) -> float:
        """Compression of the whole model."""
        return self.dense_parameters / self.parameters

    @property
    def by_bytes(self) -> float:
        return self.dense_bytes / self.bytes

    @property
    def was_finetuned(self) -> bool:
        return any(weight.finetuned_error is not None for weight in self.weights)

    def finetuned(self, after: Report) -> Report:
        """This report, with the errors of one made after the fine-tuning; sizes are those of then."""
        pairs = zip(self.weights, after.weights, strict=True)
        return replace(
            after,
            weights=tuple(
                replace(
                    last,
                    error=first.error,
                    output_error=first.output_error,
                    finetuned_error=last.error,
                    finetuned_output_error=last.output_error,
                )
                for first, last in pairs
            ),
            output_error=self.output_error,
            finetuned_output_error=after.output_error,
        )

    def as_json(self) -> dict[str, Any]:
        """As JSON has it; compressions added."""
        return {
            **asdict(self),
            "weights": [
                {
                    **asdict(weight),
                    "shape": list(weight.shape),
                    "by_parameters": weight.dense_parameters / max(weight.parameters, 1),
                    "by_bytes": weight.dense_bytes / max(weight.bytes, 1),
                }
                for weight in self.weights
            ],
            "by_parameters": self.by_parameters,
            "by_bytes": self.by_bytes,
        }


def report(
    dense: nn.Module, doped: Mapping[str, Doped], met: Mapping[str, Moments], output_error: float | None
) -> Report:
    """Compare the structures, by parameter name, with the dense model that they are of; met: what its weights met on samples."""
    rows = []
    for name, structure in doped.items():
        W = dense.get_parameter(name).detach().cpu().numpy()
        other = structure.to_dense()
        stored, format_ = _stored(structure)
        norm = float(np.linalg.norm(W)) or 1.0
        rows.append(
            WeightReport(
                name=name,
                structure=describe(structure),
                shape=structure.shape,
                dense_parameters=W.size,
                parameters=structure.parameters,
                dense_bytes=W.nbytes,
                bytes=stored,
                format=format_,
                error=float(np.linalg.norm(W - other)) / norm,
                output_error=met[name].output_error(W, other) if name in met else None,
            )
        )
    all_ = sum(parameter.numel() for parameter in dense.parameters())
    left = all_ - sum(row.dense_parameters for row in rows)
    return Report(
        weights=tuple(rows),
        dense_parameters=all_,
        parameters=left + sum(row.parameters for row in rows),
        dense_bytes=4 * all_,
        bytes=4 * left + sum(row.bytes for row in rows),
        output_error=output_error,
    )


def _stored(structure: Doped) -> tuple[int, str]:
    """Bytes of the factors and of S in the smallest of the formats that hold any S, and that format's name."""
    base = sum(array.nbytes for array in structure.base.arrays().values())
    if not structure.S.nnz:
        return base, "none"
    sizes = {name: pack(name, structure.S).bytes for name in _FORMATS}
    best = min(sizes, key=lambda name: sizes[name])
    return base + sizes[best], best
