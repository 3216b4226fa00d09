"""The files of a bundle's folder: read with every fault named, none of the code loaded.

bundle.json            what the other files are, and what they need of a machine (document.py)
lib.so                 the compiled model, a TVM Relax executable; of several targets one lib.TARGET.so each
weights.safetensors    the packed weights of all targets; those that are equal once
golden.safetensors     one run: "input.NAME", "state.NAME" before, "output.NAME", "new_state.NAME" after, and
                       "scores.NAME", by which an output that is indices was chosen
vocabulary.json        language models only: the list of tokens, by index
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_tensors

from tvm_doping.arrays import aligned_copy
from tvm_doping.document import FORMAT_VERSION, Document, FileRecord, Stored, from_version_1, stored_keys
from tvm_doping.errors import BundleError
from tvm_doping.strict_json import parse_json, read_json

MANIFEST = "bundle.json"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"
VOCABULARY = "vocabulary.json"
_LARGEST_MANIFEST = 64 * 2**20
_AGAIN = "Copy the bundle again, or compile it anew."
# How safetensors calls what NumPy calls otherwise.
_DTYPES = {
    "F16": "float16", "F32": "float32", "F64": "float64", "I8": "int8", "I16": "int16", "I32": "int32",
    "I64": "int64", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
}  # fmt: skip


def read_document(folder: Path) -> Document:
    """bundle.json, checked in itself and against the names of files. BundleError for what is damaged, edited or too new."""
    path = folder / MANIFEST
    try:
        raw = read_json(
            _inside(path),
            lambda needs, got: BundleError(str(path), needs, got, _AGAIN),
            largest=_LARGEST_MANIFEST,
        )
    except FileNotFoundError:
        raise BundleError(
            str(folder),
            f"a folder with {MANIFEST}",
            "no such file",
            "Give the folder that `tvm-doping compile` wrote.",
        ) from None
    if not isinstance(raw, dict):
        _refuse(path, "a JSON object", type(raw).__name__)
    version = raw.get("format_version")
    if isinstance(version, bool) or version not in (1, FORMAT_VERSION):
        raise BundleError(
            str(path),
            f"format version {FORMAT_VERSION}",
            f"version {str(version)[:40] if isinstance(version, int) else repr(version)[:40]}",
            "Compile the model again, or install the release of tvm_doping that made the bundle.",
        )
    if raw.get("digest") != digest(raw):
        _refuse(path, "the contents its own digest was taken of", "edited contents")
    try:
        if version == 1:
            raw = _upgrade(folder, raw)
        document = Document.model_validate(raw)
        for group in ("weights", "golden"):
            stored_keys(getattr(variant, group) for variant in document.variants)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BundleError(
            f"{path}: {place}"[:400], first["msg"][:400], repr(first["input"])[:80], _AGAIN
        ) from error
    except ValueError as error:
        _refuse(path, str(error)[:200], "two")
    names, needed = set(document.files), {WEIGHTS, GOLDEN, *(v.library for v in document.variants)}
    if not names.issuperset(needed) or names - needed - {VOCABULARY}:
        listed = ", ".join(sorted(names))[:400]
        raise BundleError(f"{path}: files", f"{', '.join(sorted(needed))} (and {VOCABULARY})", listed, _AGAIN)
    return document


def read_bytes(folder: Path, name: str, record: FileRecord) -> bytes:
    """The contents of a small file, checked."""
    check_file(folder, name, record)
    content = (folder / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != record.sha256:  # it may have been replaced meanwhile
        _refuse(folder / name, f"sha256 {record.sha256[:16]}...", "other contents")
    return content


def check_file(folder: Path, name: str, record: FileRecord) -> None:
    """BundleError unless the file is there, in the folder, with this size and sha256."""
    path = folder / name
    if not _inside(path).is_file():
        _refuse(path, "a file of the bundle", "no such file")
    if path.stat().st_size != record.bytes:
        _refuse(path, f"{record.bytes} bytes", f"{path.stat().st_size}")
    try:
        with path.open("rb") as file:  # in pieces: the weights need not be in memory twice
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        _refuse(path, "a file that can be read", str(error))
    if found != record.sha256:
        _refuse(path, f"sha256 {record.sha256[:16]}...", "other contents")


def read_vocabulary(content: bytes, path: Path) -> tuple[str, ...]:
    """The tokens, by index."""
    try:
        tokens = parse_json(content.decode())
    except (ValueError, RecursionError) as error:
        _refuse(path, "a list of tokens in JSON", str(error)[:200])
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        _refuse(path, "a list of tokens in JSON", "something else")
    return tuple(tokens)


def read_tensors(path: Path, wanted: Iterable[Stored], every: Mapping[str, Stored]) -> dict[str, np.ndarray]:
    """Name -> array, of those that are wanted, each 64-byte aligned: TVM's kernels load whole vectors and do not check.

    Names of one key have one array. every: what the file holds, by key. BundleError where it holds anything else, by name, shape or
    dtype.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            found = {array["key"]: array for array in _table(file)}
            if set(found) != set(every):
                odd = sorted(set(found) ^ set(every))
                _refuse(
                    path,
                    f"{len(every)} tensors as {MANIFEST} lists them",
                    f"{len(found)}, and not {str(odd[0])[:80]!r} in both",
                )
            for key, array in found.items():
                spec = every[key]
                if (tuple(array["shape"]), array["dtype"]) != (spec.shape, spec.dtype):
                    _refuse(
                        path,
                        f"{key[:80]!r} as {spec.dtype} {spec.shape}, which {MANIFEST} lists",
                        f"{array['dtype']} {tuple(array['shape'])}",
                    )
            wanted = list(wanted)
            kept = {key: aligned_copy(file.get_tensor(key)) for key in {array.key for array in wanted}}
    except (SafetensorError, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(str(path), "a safetensors file", str(error)[:400], _AGAIN) from error
    return {array.name: kept[array.key] for array in wanted}


def check_finite(path: Path, arrays: Mapping[str, np.ndarray], layers: Sequence[str]) -> None:
    """BundleError for a weight that is not a number, or of a layer and infinite: a mask beside them may be."""
    for name, value in arrays.items():
        if value.dtype.kind != "f":
            continue
        of_layer = any(name == layer or name.startswith(f"{layer}.") for layer in layers)
        bad = int(np.count_nonzero(~np.isfinite(value) if of_layer else np.isnan(value)))
        if bad:
            _refuse(path, f"finite numbers in {name[:80]!r}", f"{bad} of {value.size} NaN or infinite")


def tensor_file(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The contents of a safetensors file."""
    return save_tensors({name: np.asarray(array, order="C") for name, array in tensors.items()})


def write_document(path: Path, document: Document) -> None:
    """Write bundle.json, its digest taken."""
    raw = document.model_dump(mode="json")
    raw["digest"] = digest(raw)
    path.write_text(json.dumps(raw, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def record_of(content: bytes) -> FileRecord:
    """What bundle.json says of a file with these contents."""
    return FileRecord(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def digest(raw: Mapping[str, Any]) -> str:
    """sha256 of bundle.json without its own digest, so that an edited shape or tolerance is noticed too."""
    rest = {key: value for key, value in raw.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def number(value: Any) -> Any:
    """The value, or None where JSON has no such number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _upgrade(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """A bundle.json of version 1: its weights are those of the file, whose shapes it did not list."""
    tables = {}
    for group, name in (("weights", WEIGHTS), ("golden", GOLDEN)):
        path = folder / name
        try:
            with safe_open(_inside(path), framework="numpy") as file:
                tables[group] = _table(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise BundleError(str(path), "a safetensors file", str(error)[:400], _AGAIN) from error
    listed = raw.get("weights")
    names = sorted(array["name"] for array in tables["weights"])
    if not isinstance(listed, list) or sorted(map(str, listed)) != names:
        _refuse(folder / WEIGHTS, f"tensors as {MANIFEST} lists them", f"{len(names)} others")
    return from_version_1(raw, tables)


def _table(file: Any) -> list[dict[str, Any]]:
    """Name, shape and dtype of each tensor in an open safetensors file."""
    slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    return [
        {
            "name": key,
            "key": key,
            "shape": tuple(part.get_shape()),
            "dtype": _DTYPES.get(part.get_dtype(), part.get_dtype()),
        }
        for key, part in slices.items()
    ]


def _inside(path: Path) -> Path:
    """The path. BundleError where it is a link that leads out of its folder: a bundle is copied whole, and reads nothing else."""
    try:
        leads_out = path.is_symlink() and path.resolve().parent != path.parent
    except (OSError, RuntimeError) as error:  # a name that is too long, a circle of links
        raise BundleError(repr(str(path))[:200], "a path", str(error)[:200], "Check the path.") from error
    if leads_out:
        _refuse(path, "a file in the bundle's own folder", "a symbolic link that leads out of it")
    return path


def _refuse(path: Path, needs: str, got: str) -> NoReturn:
    raise BundleError(str(path), needs, got, _AGAIN)
