"""A structure as a line of JSON and its arrays, and back: how graphs and files hold one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike

from tvm_doping.errors import InvalidInput
from tvm_doping.structures.base import Structure
from tvm_doping.structures.doped import Doped, family


def to_spec(structure: Structure) -> dict[str, Any]:
    """{"kind", "shape"}, and {"base": kind} of a Doped: with `arrays()`, all there is to it."""
    spec: dict[str, Any] = {"kind": structure.kind, "shape": list(structure.shape)}
    if isinstance(structure, Doped):
        spec["base"] = structure.base.kind
    return spec


def from_spec(spec: Mapping[str, Any], arrays: Mapping[str, ArrayLike]) -> Structure:
    """The structure that `to_spec` and `arrays()` came from. InvalidInput when they do not fit."""
    try:
        kind, (m, n) = spec["kind"], spec["shape"]
    except (KeyError, TypeError, ValueError):
        raise InvalidInput(
            "structure spec", "keys kind and shape (m, n)", f"{spec}", "Pass what to_spec() returned."
        ) from None
    if kind == Doped.kind:
        return Doped.from_arrays(arrays, (int(m), int(n)), base=spec.get("base"))
    out: Structure = family(kind).from_arrays(arrays, (int(m), int(n)))
    return out
