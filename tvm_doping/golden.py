"""The golden run that a bundle carries, and how far another run of it is off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tvm_doping.comparing import difference
from tvm_doping.errors import BundleError, SessionError
from tvm_doping.signature import bind

if TYPE_CHECKING:
    from tvm_doping.bundle import Bundle
    from tvm_doping.manifest import Manifest, TensorSpec


def golden_values(bundle: Bundle, group: str, specs: Sequence[TensorSpec]) -> list[np.ndarray]:
    """The golden arrays of a group ("input", "state", "output", "new_state"). Raises BundleError where one is missing."""
    names = [f"{group}.{spec.name}" for spec in specs]
    missing = [name for name in names if name not in bundle.golden]
    if missing:
        raise BundleError(
            f"bundle {bundle.manifest.name!r}",
            "golden values to verify",
            f"no {missing[0]}",
            "Compile it anew.",
        )
    return [bundle.golden[name] for name in names]


def check_golden(bundle: Bundle) -> None:
    """BundleError unless the golden run has the shapes and dtypes that the manifest declares: what is allocated from these is then
    no larger than what the bundle holds.
    """
    manifest = bundle.manifest
    specs = (*manifest.inputs, *manifest.state, *manifest.outputs, *manifest.state)
    groups = {
        "input": manifest.inputs,
        "state": manifest.state,
        "output": manifest.outputs,
        "new_state": manifest.state,
    }
    arrays = [array for group, own in groups.items() for array in golden_values(bundle, group, own)]
    try:
        bind(specs, arrays, {})
    except SessionError as error:
        raise BundleError(
            f"golden values of {manifest.name!r}", error.needs, error.got, "Compile it anew."
        ) from error


def golden_error(
    manifest: Manifest, name: str, got: np.ndarray, golden: np.ndarray, scores: np.ndarray | None
) -> float:
    """The largest |got - golden|; BundleError beyond the bundle's tolerance."""
    where = f"{name!r} of {manifest.name!r}"
    if golden.shape != got.shape:
        raise BundleError(
            where, f"a golden value of shape {got.shape}", f"{golden.shape}", "Compile it anew."
        )
    error, allowed = difference(got, golden, manifest.tolerance, scores)
    if not error <= allowed:  # also catches NaN
        raise BundleError(
            where, f"the golden value within {allowed:.3g}", f"{error:.3g} off", "Compile it anew."
        )
    return error
