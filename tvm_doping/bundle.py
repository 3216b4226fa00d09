"""The bundle, which is what is deployed: a folder with a model's code for one target or several, its weights, and what both need
(bundle_files.py lists the files).

Reading a bundle checks all of it before any of its code runs. Imports neither torch nor TVM.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvm_doping.arrays import aligned_copy
from tvm_doping.bundle_files import (
    GOLDEN,
    MANIFEST,
    VOCABULARY,
    WEIGHTS,
    check_file,
    check_finite,
    number,
    read_bytes,
    read_document,
    read_tensors,
    read_vocabulary,
    record_of,
    tensor_file,
    write_document,
)
from tvm_doping.document import Document, share, stored_keys
from tvm_doping.errors import BundleError, InvalidInput
from tvm_doping.fitting import best_first, check_machine, choose_variant
from tvm_doping.golden import check_golden
from tvm_doping.manifest import Manifest, Model
from tvm_doping.places import check_replaceable, check_writable, write_folder

if TYPE_CHECKING:
    from tvm_doping.build import Compiled
    from tvm_doping.runtime import Session

LIBRARY = "lib.so"


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A compiled model: in memory, or read from a folder. Where it was compiled for several targets, the variant for one of
    them, which knows of the others.

    manifest    shapes, state, target, layers, versions (manifest.Manifest);
    library     the bytes of the compiled code;
    weights     name -> array, 64-byte aligned, in the order `main` takes them;
    golden      "input.*", "state.*", "output.*", "new_state.*", "scores.*" -> array;
    vocabulary  tokens by index, or empty;
    folder      where it was read from or saved to, if anywhere; file: its code there;
    targets     the names of all targets, the best first;
    others      the variants for the other targets, where they are in memory.
    """

    manifest: Manifest
    library: bytes
    weights: Mapping[str, np.ndarray]
    golden: Mapping[str, np.ndarray]
    vocabulary: tuple[str, ...] = ()
    folder: Path | None = None
    file: str = LIBRARY
    targets: tuple[str, ...] = ()
    others: tuple[Bundle, ...] = ()

    def __post_init__(self) -> None:
        if not self.targets:
            object.__setattr__(self, "targets", (self.manifest.target.name,))

    def __repr__(self) -> str:
        place = "in memory" if self.folder is None else str(self.folder)
        several = f" (of {', '.join(self.targets)})" if len(self.targets) > 1 else ""
        return f"<Bundle {self.manifest.name!r} for {self.manifest.target.name}{several}, {place}>"

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, target: str = "auto", any_machine: bool = False
    ) -> Bundle:
        """Read a bundle and check all of it; none of its code is loaded.

        target: which variant of several; "auto" the best that this CPU can run (fitting.choose_variant).
        any_machine: also read bundles made for another CPU (to inspect them; they still make no session).
        Raises BundleError for anything missing, damaged, edited, too new, or made for another machine.
        """
        if not isinstance(folder, str | os.PathLike):
            raise InvalidInput(
                "bundle", "the path of a folder", type(folder).__name__, "Give what `Bundle.save` wrote."
            )
        folder = _resolved(folder)
        document = read_document(folder)
        specs = [variant.target for variant in document.variants]
        variant = document.variants[choose_variant(document.name, specs, target, any_machine=any_machine)]
        manifest = document.manifest(variant)
        if not any_machine:
            check_machine(manifest)
        small = {
            name: read_bytes(folder, name, record)
            for name, record in document.files.items()
            if name in (variant.library, VOCABULARY)
        }
        for name, record in document.files.items():
            if name not in small:
                check_file(folder, name, record)
        every = [stored_keys(getattr(v, group) for v in document.variants) for group in ("weights", "golden")]
        weights = read_tensors(folder / WEIGHTS, variant.weights, every[0])
        check_finite(folder / WEIGHTS, weights, [layer.name for layer in variant.layers])
        bundle = cls(
            manifest=manifest,
            library=small[variant.library],
            weights=weights,
            golden=read_tensors(folder / GOLDEN, variant.golden, every[1]),
            vocabulary=read_vocabulary(small[VOCABULARY], folder / VOCABULARY) if VOCABULARY in small else (),
            folder=folder,
            file=variant.library,
            targets=tuple(spec.name for spec in specs),
        )
        check_golden(bundle)
        return bundle

    @classmethod
    def join(cls, bundles: Sequence[Bundle]) -> Bundle:
        """One bundle of several of the same model, each for another target: the variant that suits this machine best.

        Raises BundleError where they differ in anything but their code and how its weights are packed.
        """
        parts = [part for bundle in bundles for part in bundle.variants]
        parts = [parts[index] for index in best_first([part.manifest.target.name for part in parts])]
        targets = tuple(part.manifest.target.name for part in parts)
        for part in parts:
            for field in Model.model_fields:
                one, other = getattr(parts[0].manifest, field), getattr(part.manifest, field)
                if one != other:
                    raise BundleError(
                        "bundles to join",
                        f"the same {field}",
                        f"{one} and {other}"[:400],
                        "Join bundles of one model.",
                    )
        if len(set(targets)) != len(targets) or any(part.vocabulary != parts[0].vocabulary for part in parts):
            raise BundleError(
                "bundles to join", "one model, each for another target", ", ".join(targets), "Leave one out."
            )
        specs = [part.manifest.target for part in parts]
        best = choose_variant(parts[0].manifest.name, specs, any_machine=True)
        others = tuple(part for index, part in enumerate(parts) if index != best)
        return replace(parts[best], targets=targets, others=others, folder=None, file=LIBRARY)

    @property
    def variants(self) -> tuple[Bundle, ...]:
        """The bundle for each of its targets alone, the best first; those not in memory are read from the folder."""
        known = {other.manifest.target.name: other for other in self.others}
        known[self.manifest.target.name] = replace(self, targets=(), others=())
        for name in self.targets:
            if name not in known:
                assert self.folder is not None
                found = Bundle.load(self.folder, target=name, any_machine=True)
                known[name] = replace(found, targets=())
        return tuple(known[name] for name in self.targets)

    @classmethod
    def from_compiled(
        cls,
        compiled: Compiled,
        *,
        name: str,
        vocabulary: Sequence[str] = (),
        tokens: str | None = None,
        labels: Sequence[str] = (),
        columns: Sequence[str] = (),
    ) -> Bundle:
        """The bundle of what `build` made, in memory."""
        target, signature = compiled.target, compiled.signature
        fields = ("name", "shape", "dtype", "below")
        specs = {
            group: [
                {field: getattr(tensor, field) for field in fields} for tensor in getattr(signature, group)
            ]
            for group in ("inputs", "state", "outputs")
        }
        manifest = Manifest.model_validate(
            {
                "name": name,
                "target": {"name": target.name, "mcpu": target.mcpu, "features": target.features},
                **specs,
                "time_axis": signature.time_axis,
                "streaming": signature.streaming,
                "no_stream": signature.no_stream,
                "tolerance": compiled.tolerance,
                "threads": compiled.threads,
                "golden_error": number(compiled.golden_error),
                "precision": compiled.precision,
                "precision_error": compiled.precision_error,
                "versions": compiled.versions,
                "weights": tuple(compiled.weights),
                "layers": compiled.layers,
                "compression": compiled.compression,
                "metrics": {key: number(value) for key, value in compiled.metrics.items()},
                "records": compiled.records,
                "tokens": tokens,
                "labels": tuple(labels),
                "columns": tuple(columns),
            }
        )
        return cls(
            manifest=manifest,
            library=compiled.library,
            weights={key: aligned_copy(array) for key, array in compiled.weights.items()},
            golden=compiled.golden,
            vocabulary=tuple(vocabulary),
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the bundle to a folder: all of it or nothing. Replaces a bundle, never anything else."""
        folder = Path(folder).resolve()
        check_place(folder)
        write_folder(folder, self._write, BundleError)
        return folder

    def session(
        self,
        *,
        batch: int | None = None,
        threads: int | None = None,
        pin: bool = False,
        graph: bool | None = None,
        verify: bool = False,
    ) -> Session:
        """A new stream over this bundle, as `load` makes it; sessions of one bundle share its weights."""
        from tvm_doping.opening import open_session

        return open_session(self, batch=batch, threads=threads, pin=pin, graph=graph, verify=verify)

    @cached_property
    def bytes(self) -> int:
        """Bytes of the weights as stored (indices and padding included), an array of several names once."""
        return sum({id(array): array.nbytes for array in self.weights.values()}.values())

    def _write(self, folder: Path) -> None:
        parts = self.variants
        ordered = ({name: part.weights[name] for name in part.manifest.weights} for part in parts)
        weights, tables = share(zip(self.targets, ordered, strict=True))
        golden, runs = share(zip(self.targets, (part.golden for part in parts), strict=True))
        document = Document.of([part.manifest for part in parts], tables, runs)
        contents = {
            variant.library: part.library for variant, part in zip(document.variants, parts, strict=True)
        }
        contents |= {WEIGHTS: tensor_file(weights), GOLDEN: tensor_file(golden)}
        if self.vocabulary:
            contents[VOCABULARY] = json.dumps(self.vocabulary).encode()
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        files = {name: record_of(content) for name, content in contents.items()}
        write_document(folder / MANIFEST, document.model_copy(update={"files": files}))


def check_place(folder: str | os.PathLike[str]) -> None:
    """Raise BundleError where a bundle cannot be saved to the folder: to ask before compiling. Writes nothing."""
    folder = Path(folder).resolve()
    check_replaceable(folder, MANIFEST, BundleError)
    check_writable(folder.parent, BundleError, str(folder))


def _resolved(folder: str | os.PathLike[str]) -> Path:
    try:
        return Path(folder).resolve()
    except (
        ValueError,
        OSError,
        RuntimeError,
    ) as error:  # a NUL in the name, a name that is too long, a circle of links
        raise BundleError(
            repr(str(folder))[:200], "the path of a folder", str(error), "Check the path."
        ) from error
