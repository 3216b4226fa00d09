"""bundle.json: a model, and the variants of its code, one a target; and which arrays of the bundle's files each of them takes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from tvm_doping.manifest import Code, Dtype, Manifest, Model, Part, Size

FORMAT_VERSION: Literal[2] = 2
Arrays = Mapping[str, np.ndarray]


class FileRecord(Part):
    """A file of the bundle: its size and the sha256 of its contents."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: Size


class Stored(Part):
    """An array of a variant: `name` as the variant has it, `key` as the file has it, which several variants may share."""

    name: str
    key: str
    shape: tuple[Size, ...] = Field(max_length=32)  # NumPy has no more dimensions (64 from NumPy 2)
    dtype: Dtype


class Variant(Code):
    """The code for one target.

    library  its file; weights: its arrays in weights.safetensors, in main's order; golden: those of golden.safetensors.
    """

    library: Annotated[
        str, Field(pattern=r"^lib(\.[A-Za-z0-9_+-]+)*\.so$")
    ]  # of the bundle's folder, whatever it says
    weights: tuple[Stored, ...] = ()
    golden: tuple[Stored, ...] = ()

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        for group in (self.weights, self.golden):
            names = [array.name for array in group]
            if len(set(names)) != len(names):
                raise ValueError("names of arrays given once each")
        return self


class Document(Model):
    """All of bundle.json. variants: the best first; files: the other files of the bundle; digest: sha256 of this without it."""

    format_version: Literal[2] = FORMAT_VERSION
    variants: tuple[Variant, ...] = Field(min_length=1)
    files: dict[str, FileRecord] = Field(default={})
    digest: str = ""

    @model_validator(mode="after")
    def _variants_agree(self) -> Self:
        for field in ("target.name", "library"):
            values = [v.library if field == "library" else v.target.name for v in self.variants]
            if len(set(values)) != len(values):
                raise ValueError(f"variants of a {field} each, not {values}")
        return self

    def manifest(self, variant: Variant) -> Manifest:
        """The model as this variant is of it."""
        shared = {name: getattr(self, name) for name in Model.model_fields}
        own = {name: getattr(variant, name) for name in Code.model_fields}
        return Manifest(**shared, **own, weights=tuple(array.name for array in variant.weights))

    @classmethod
    def of(
        cls,
        manifests: Sequence[Manifest],
        weights: Sequence[Sequence[Stored]],
        golden: Sequence[Sequence[Stored]],
    ) -> Self:
        """The document of these variants, whose arrays are stored so; `files` is still empty."""
        shared = {name: getattr(manifests[0], name) for name in Model.model_fields}
        libraries = library_names([manifest.target.name for manifest in manifests])
        variants = [
            Variant(
                **{name: getattr(manifest, name) for name in Code.model_fields},
                library=library,
                weights=tuple(own),
                golden=tuple(run),
            )
            for manifest, library, own, run in zip(manifests, libraries, weights, golden, strict=True)
        ]
        return cls(**shared, variants=tuple(variants))


def library_names(targets: Sequence[str]) -> list[str]:
    """The file of each variant's code: lib.so where there is one, else lib.TARGET.so."""
    if len(targets) == 1:
        return ["lib.so"]
    return [f"lib.{re.sub(r'[^A-Za-z0-9_+-]', '-', target)}.so" for target in targets]


def share(variants: Iterable[tuple[str, Arrays]]) -> tuple[dict[str, np.ndarray], list[list[Stored]]]:
    """(what to store, where each variant finds its own) of the arrays of (target, arrays): equal ones are stored once.

    An array keeps its name, or is called TARGET/NAME where another of that name is there.
    """
    kept: dict[str, np.ndarray] = {}
    seen: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    tables: list[list[Stored]] = []
    for target, arrays in variants:
        table = []
        for name, value in arrays.items():
            array = np.ascontiguousarray(value).reshape(value.shape)  # which would make a vector of a scalar
            form = (str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).digest())
            key = seen.get(form)
            if key is None:
                key = name if name not in kept else f"{target}/{name}"
                while key in kept:
                    key += "'"
                seen[form], kept[key] = key, array
            table.append(
                Stored.model_validate({"name": name, "key": key, "shape": array.shape, "dtype": form[0]})
            )
        tables.append(table)
    return kept, tables


def stored_keys(tables: Iterable[Iterable[Stored]]) -> dict[str, Stored]:
    """Key -> what every variant says of it. ValueError where two do not say the same."""
    found: dict[str, Stored] = {}
    for array in (array for table in tables for array in table):
        other = found.setdefault(array.key, array)
        if (other.shape, other.dtype) != (array.shape, array.dtype):
            raise ValueError(f"one shape and dtype of {array.key!r}")
    return found


def from_version_1(raw: dict[str, Any], tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """A bundle.json of version 1, which had one variant and no shapes, as one of version 2; tables: what its files hold."""
    own = {name: raw.pop(name) for name in Code.model_fields if name in raw}
    order = {name: position for position, name in enumerate(raw.pop("weights", ()))}
    weights = sorted(tables["weights"], key=lambda array: order.get(array["name"], -1))
    variant = {**own, "library": "lib.so", "weights": weights, "golden": tables["golden"]}
    return {**raw, "format_version": FORMAT_VERSION, "variants": [variant]}
