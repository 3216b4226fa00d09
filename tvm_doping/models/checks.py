"""What is asked of a model before it is compiled."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from tvm_doping.errors import InvalidInput, UnfinishedWarning
from tvm_doping.models.doping import doped_weights
from tvm_doping.sparsity import PATTERNS

_SLACK = 1.05  # blocks at a weight's lower edge are shorter: which of them are kept moves the sum a little
_NAMED = 4  # weights that a warning names


def check_model(model: nn.Module | ExportedProgram) -> None:
    """Raise InvalidInput for a weight that is not finite; warn where S is not as sparse as it is to be."""
    check_finite(model, "Train it again from sound weights, at a lower learning rate.")
    if isinstance(model, nn.Module):
        _warn_unfinished(model)


def check_finite(model: nn.Module | ExportedProgram, remedy: str) -> None:
    """Raise InvalidInput, with that remedy, for a weight that is not finite."""
    for name, weight in model.named_parameters():
        bad = int((~torch.isfinite(weight)).sum())
        if bad:
            raise InvalidInput(
                f"weight {name}",
                "finite numbers",
                f"{bad} of {weight.numel()} entries NaN or infinite",
                remedy,
            )


def _warn_unfinished(model: nn.Module) -> None:
    """Warn where S of a model has more open entries than its compression plans: the annealing was not finished.

    What counts is their sum over all weights, as scope "global" shares them out otherwise than planned.
    """
    rows = []
    for path, _, _, weight in doped_weights(model):
        mask = weight.mask.cpu().numpy()
        # a pattern rounds: what it makes of the planned density, not that density, is what to expect
        planned = PATTERNS[weight.pattern](mask.astype(np.float32), weight.nonzeros / mask.size)
        rows.append((path, int(mask.sum()), int(planned.sum()), mask.size))
    if sum(row[1] for row in rows) <= _SLACK * sum(row[2] for row in rows):
        return
    dense = [
        f"{path} ({now / size:.1%} nonzero, {planned / size:.1%} planned)"
        for path, now, planned, size in rows
        if now > planned
    ]
    rest = f" and {len(dense) - _NAMED} more" if len(dense) > _NAMED else ""
    warnings.warn(
        f"S is denser than planned in {', '.join(dense[:_NAMED])}{rest}: the compiled model is larger and slower than it "
        "is to be. Finish the annealing (train on to its end), or call tvm_doping.models.close_masks(model), which keeps "
        "the largest entries of S at some loss of accuracy.",
        UnfinishedWarning,
        stacklevel=_levels_to_the_caller(),
    )


def _levels_to_the_caller() -> int:
    """How far above whoever asks the first frame outside this package is: of `compile`, or of what else checks a model."""
    level, frame = 1, inspect.currentframe()
    assert frame is not None
    while (above := frame.f_back) is not None:
        if above.f_globals.get("__name__", "").partition(".")[0] != __package__.partition(".")[0]:
            return level
        level, frame = level + 1, above
    return level - 1
