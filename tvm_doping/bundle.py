"""The bundle, which is what is deployed: a folder with a library, its weights, and what both need.

    bundle.json            the manifest: what the other files are, and what they need of a machine
    lib.so                 the compiled model: a TVM Relax executable
    weights.safetensors    the packed weights, in the order the manifest lists
    golden.safetensors     one run: "input.NAME", "state.NAME" before, "output.NAME", "new_state.NAME" after, and
                           "scores.NAME", by which an output that is indices was chosen
    vocabulary.json        language models only: the list of tokens, by index

Reading a bundle checks all of it before any of its code runs. Imports neither torch nor TVM.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_tensors

from tvm_doping.arrays import aligned_copy
from tvm_doping.errors import BundleError, InvalidInput
from tvm_doping.manifest import FORMAT_VERSION, FileRecord, Manifest
from tvm_doping.places import check_writable
from tvm_doping.targets import missing_features

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tvm_doping.build import Compiled
    from tvm_doping.runtime import Session

MANIFEST = "bundle.json"
LIBRARY = "lib.so"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"
VOCABULARY = "vocabulary.json"
_REQUIRED = (LIBRARY, WEIGHTS, GOLDEN)
_LARGEST_MANIFEST = 64 * 2**20
_AGAIN = "Copy the bundle again, or compile it anew."


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """A compiled model: in memory, or read from a folder.

    manifest    shapes, state, target, layers, versions (manifest.Manifest);
    library     the bytes of lib.so;
    weights     name -> array, 64-byte aligned, in the order `main` takes them;
    golden      "input.*", "state.*", "output.*", "new_state.*", "scores.*" -> array;
    vocabulary  tokens by index, or empty;
    folder      where it was read from or saved to, if anywhere.
    """

    manifest: Manifest
    library: bytes
    weights: Mapping[str, np.ndarray]
    golden: Mapping[str, np.ndarray]
    vocabulary: tuple[str, ...] = ()
    folder: Path | None = None

    def __repr__(self) -> str:
        place = "in memory" if self.folder is None else str(self.folder)
        return f"<Bundle {self.manifest.name!r} for {self.manifest.target.name}, {place}>"

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, any_machine: bool = False) -> Bundle:
        """Read a bundle and check all of it; none of its code is loaded.

        any_machine: also read bundles made for another CPU (to inspect them; they still make no session).
        Raises BundleError for anything missing, damaged, edited, too new, or made for another machine.
        """
        if not isinstance(folder, str | os.PathLike):
            raise InvalidInput(
                "bundle", "the path of a folder", type(folder).__name__, "Give what `Bundle.save` wrote."
            )
        folder = Path(folder).resolve()
        manifest = _read_manifest(folder)
        if not any_machine:
            check_machine(manifest)
        contents = {name: _read_file(folder / name, record) for name, record in manifest.files.items()}
        weights = _read_tensors(folder / WEIGHTS)
        if sorted(weights) != sorted(manifest.weights):
            raise BundleError(
                str(folder / WEIGHTS),
                f"{len(manifest.weights)} tensors as {MANIFEST} lists them",
                f"{len(weights)}",
                _AGAIN,
            )
        return cls(
            manifest=manifest,
            library=contents[LIBRARY],
            weights={name: weights[name] for name in manifest.weights},
            golden=_read_tensors(folder / GOLDEN),
            vocabulary=tuple(json.loads(contents[VOCABULARY])) if VOCABULARY in contents else (),
            folder=folder,
        )

    @classmethod
    def from_compiled(
        cls, compiled: Compiled, *, name: str, vocabulary: Sequence[str] = (), tokens: str | None = None
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
                "golden_error": _number(compiled.golden_error),
                "precision": compiled.precision,
                "precision_error": compiled.precision_error,
                "versions": compiled.versions,
                "weights": tuple(compiled.weights),
                "layers": compiled.layers,
                "compression": compiled.compression,
                "metrics": {key: _number(value) for key, value in compiled.metrics.items()},
                "records": sorted(
                    {layer.get("plan", {}).get("record", "") for layer in compiled.layers} - {""}
                ),
                "tokens": tokens,
            }
        )
        with tempfile.TemporaryDirectory(prefix="tvm-doping-") as folder:
            path = Path(folder) / LIBRARY
            compiled.executable.export_library(str(path))
            library = path.read_bytes()
        return cls(
            manifest=manifest,
            library=library,
            weights={key: aligned_copy(array) for key, array in compiled.weights.items()},
            golden=compiled.golden,
            vocabulary=tuple(vocabulary),
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the bundle to a folder: all of it or nothing. Replaces a bundle, never anything else."""
        folder = Path(folder).resolve()
        check_place(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        mark = uuid.uuid4().hex[:8]
        fresh, old = (folder.with_name(f".{folder.name}.{word}-{mark}") for word in ("new", "old"))
        try:
            fresh.mkdir()
            self._write(fresh)
            if folder.exists():  # a folder that is not empty cannot be replaced in one step
                os.replace(folder, old)
            try:
                os.replace(fresh, folder)
            except OSError:
                if old.exists():
                    os.replace(old, folder)
                raise
        except OSError as error:
            raise BundleError(
                str(folder), "a place that can be written", str(error), "Save to another folder."
            ) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def session(
        self,
        *,
        batch: int | None = None,
        threads: int | None = None,
        pin: bool = False,
        verify: bool = False,
    ) -> Session:
        """A new stream over this bundle, as `load` makes it; sessions of one bundle share its weights."""
        from tvm_doping.runtime import Session

        return Session(self, batch=batch, threads=threads, pin=pin, verify=verify)

    @cached_property
    def bytes(self) -> int:
        """Bytes of the weights as stored (indices and padding included)."""
        return sum(array.nbytes for array in self.weights.values())

    def _write(self, folder: Path) -> None:
        (folder / LIBRARY).write_bytes(self.library)
        (folder / WEIGHTS).write_bytes(_tensor_file(self.weights))
        (folder / GOLDEN).write_bytes(_tensor_file(self.golden))
        names = [*_REQUIRED]
        if self.vocabulary:
            (folder / VOCABULARY).write_text(json.dumps(self.vocabulary), encoding="utf-8")
            names.append(VOCABULARY)
        files = {name: _record((folder / name).read_bytes()) for name in names}
        raw = self.manifest.model_copy(update={"files": files}).model_dump(mode="json")
        raw["digest"] = _digest(raw)
        (folder / MANIFEST).write_text(json.dumps(raw, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def check_place(folder: str | os.PathLike[str]) -> None:
    """Raise BundleError where a bundle cannot be saved to the folder: to ask before compiling. Writes nothing."""
    folder = Path(folder).resolve()
    _refuse_to_replace(folder)
    check_writable(folder.parent, BundleError, str(folder))


def check_machine(manifest: Manifest) -> None:
    """Raise BundleError where this CPU lacks a feature the code needs, or the TVM runtime here is of another
    release.
    """
    missing = missing_features(manifest.target.features)
    if missing:
        raise BundleError(
            f"bundle {manifest.name!r} for {manifest.target.name}",
            f"a CPU with {', '.join(manifest.target.features)}",
            f"one without {', '.join(missing)}",
            "Compile the model for this machine: `tvm-doping compile --target auto`.",
        )
    made, here = manifest.versions.get("tvm", ""), _installed("apache-tvm")
    if made.split(".")[:2] != here.split(".")[:2]:
        raise BundleError(
            f"bundle {manifest.name!r}",
            f"the runtime of TVM {made or '(its manifest does not say which)'}",
            f"apache-tvm {here}" if here else "no apache-tvm",
            "Install that release, or compile the model with this one.",
        )


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            str(folder),
            f"a folder with {MANIFEST}",
            "no such file",
            "Give the folder that `tvm-doping compile` wrote.",
        )
    if path.stat().st_size > _LARGEST_MANIFEST:
        raise BundleError(
            str(path), f"at most {_LARGEST_MANIFEST} bytes", f"{path.stat().st_size} bytes", _AGAIN
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise BundleError(
            str(path), "a complete JSON document", str(error) or type(error).__name__, _AGAIN
        ) from error
    if not isinstance(raw, dict):
        raise BundleError(str(path), "a JSON object", type(raw).__name__, _AGAIN)
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(
            str(path),
            f"format version {FORMAT_VERSION}",
            f"version {version!r}",
            "Compile the model again, or install the release of tvm_doping that made the bundle.",
        )
    if raw.get("digest") != _digest(raw):
        raise BundleError(str(path), "the contents its own digest was taken of", "edited contents", _AGAIN)
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BundleError(f"{path}: {place}", first["msg"], repr(first["input"])[:80], _AGAIN) from error
    names = set(manifest.files)
    if not names.issuperset(_REQUIRED) or names - {*_REQUIRED, VOCABULARY}:
        raise BundleError(
            f"{path}: files", f"{', '.join(_REQUIRED)} (and {VOCABULARY})", ", ".join(sorted(names)), _AGAIN
        )
    return manifest


def _read_file(path: Path, record: FileRecord) -> bytes:
    if not path.is_file():
        raise BundleError(str(path), "a file of the bundle", "no such file", _AGAIN)
    if path.stat().st_size != record.bytes:
        raise BundleError(str(path), f"{record.bytes} bytes", f"{path.stat().st_size}", _AGAIN)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise BundleError(str(path), f"sha256 {record.sha256[:16]}...", "other contents", _AGAIN)
    return content


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, each 64-byte aligned: TVM's kernels load whole vectors and do not
    check.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: aligned_copy(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleError(str(path), "a safetensors file", str(error), _AGAIN) from error


def _tensor_file(tensors: Mapping[str, np.ndarray]) -> bytes:
    return save_tensors({name: np.asarray(array, order="C") for name, array in tensors.items()})


def _refuse_to_replace(folder: Path) -> None:
    if not folder.exists() or (
        folder.is_dir() and ((folder / MANIFEST).is_file() or not any(folder.iterdir()))
    ):
        return
    raise BundleError(
        str(folder),
        "a new folder, an empty one, or a bundle to replace",
        "a folder that is no bundle" if folder.is_dir() else "a file",
        "Save to another folder, or remove this one first.",
    )


def _record(content: bytes) -> FileRecord:
    return FileRecord(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def _digest(raw: Mapping[str, Any]) -> str:
    """sha256 of the manifest without its own digest, so that an edited shape or tolerance is noticed too."""
    rest = {key: value for key, value in raw.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _number(value: Any) -> Any:
    """The value, or None where JSON has no such number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _installed(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return ""
