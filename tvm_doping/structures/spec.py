"""A structure as a line of JSON and its arrays, and back: how graphs and files hold one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike

from tvm_doping.errors import InvalidInput
from tvm_doping.structures.base import Structure
from tvm_doping.structures.doped import Doped, family

_MOST = 2**34  # entries of W: 64 GiB in fp32; small factors may claim any size


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
            "structure spec", "keys kind and shape (m, n)", f"{spec}"[:200], "Pass what to_spec() returned."
        ) from None
    if type(m) is not int or type(n) is not int or min(m, n) < 1 or m * n > _MOST:
        raise InvalidInput(
            "shape of a structure",
            f"two sizes, at least 1, of at most {_MOST} entries",
            f"{spec['shape']}"[:80],
            "Pass what to_spec() returned.",
        )
    if kind == Doped.kind:
        return Doped.from_arrays(arrays, (m, n), base=spec.get("base"))
    out: Structure = family(kind).from_arrays(arrays, (m, n))
    return out
