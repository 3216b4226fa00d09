"""Files of bundles, run folders, records and recipes as somebody would write them who wants their readers to fail.

Each target takes bytes, by which it chooses how to damage a sound file, and reads that; what it lets through must be a
DopingError or a sound value. Damage that checksums would find is signed anew: what lies behind them is to be reached.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import sparse

from tests.records.making import DEVICE, record
from tvm_doping import checkpoint, records
from tvm_doping.bundle import Bundle
from tvm_doping.bundle_files import digest
from tvm_doping.elf import SharedLibrary
from tvm_doping.errors import DopingError
from tvm_doping.manifest import LayerReport, Manifest, TargetSpec, TensorSpec
from tvm_doping.structures import Doped, Hybrid, Kronecker, LowRank
from tvm_doping.targets import TARGETS
from tvm_doping.verifying import verify

DEEP: list[Any] = []
for _ in range(100):
    DEEP = [DEEP]
SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 255, 256, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400,
    0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf"), "", "x", "T", "N", "../lib.so", "/etc/passwd", "lib.so\0",
    "lib.so", "\ud800", "a" * 100_000, "float32", "bool", "F32", "BF16", "F8_E4M3", "1", [], {}, [[]], DEEP, [0, 0], [2**62, 4],
    [-1, 5], [0, 2**64], {"a": {}}, [1.5], ["T"], "kronecker", "doped", "zero", "exact",
]  # fmt: skip


class Choices:
    """What a fuzzer's bytes choose: numbers, until none are left; then the first of everything."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def below(self, bound: int) -> int:
        raw = self.data[self.at : self.at + 2]
        self.at += 2
        return int.from_bytes(raw, "little") % max(1, bound)

    def rest(self) -> bytes:
        return self.data[self.at :]


def damage(tree: Any, choices: Choices) -> Any:
    """The tree of JSON values with one to four of its places replaced, removed, doubled or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(1 + choices.below(4)):
        places: list[tuple[Any, Any]] = []
        _places(tree, places)
        if not places:
            return _scalar(choices)
        holder, key = places[choices.below(len(places))]
        match choices.below(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case 1:
                holder[str(_scalar(choices))[:40]] = copy.deepcopy(holder[key])
            case 2:
                other, at = places[choices.below(len(places))]
                holder[key] = copy.deepcopy(other[at])
            case 3 if isinstance(holder[key], int) and not isinstance(holder[key], bool):
                holder[key] += choices.below(9) - 4
            case _:
                holder[key] = _scalar(choices)
    return tree


def text_of(tree: Any, choices: Choices) -> bytes:
    """JSON of the tree; now and then cut, with a key twice, or with bytes that are not its own."""
    content = json.dumps(tree).encode("utf-8", "surrogatepass")
    match choices.below(12):
        case 0:
            return content[: choices.below(len(content) + 1)]
        case 1:
            return content.replace(b"{", b'{"name": 1, "name": 2, ', 1 + choices.below(3))
        case 2:
            at = choices.below(len(content) + 1)
            return content[:at] + choices.rest() + content[at:]
        case 3:
            return b"[" * (1 + choices.below(60_000)) + content
    return content


def bundle(data: bytes, folder: Path) -> None:
    """bundle.json, the headers of its safetensors files, and what its library says of itself."""
    choices, files = Choices(data), dict(_sound_bundle())
    raw = json.loads(files.pop("bundle.json"))
    part = choices.below(6)
    if part in (0, 1):
        name = ("weights.safetensors", "golden.safetensors")[part]
        files[name] = _tensors(files[name], choices)
    elif part == 2:
        files["lib.so"] = _bytes(files["lib.so"], choices)
    elif part == 3:
        files["vocabulary.json"] = text_of(damage(["a", "b"], choices), choices)
    for name, content in files.items():
        raw["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    if part > 3:
        raw = damage(raw, choices)
    if isinstance(raw, dict):
        with suppress(ValueError, TypeError):
            raw["digest"] = digest(raw)
    files["bundle.json"] = (
        text_of(raw, choices) if part == 5 else json.dumps(raw).encode("utf-8", "surrogatepass")
    )
    _fill(folder, files)
    for read in (lambda: Bundle.load(folder, any_machine=True), lambda: verify(folder)):
        _survive(read)


def run_folder(data: bytes, folder: Path) -> None:
    """config.json and model.safetensors."""
    choices, files = Choices(data), dict(_sound_run())
    config = json.loads(files["config.json"])
    if choices.below(2):
        files["model.safetensors"] = _tensors(files["model.safetensors"], choices)
    else:
        config = damage(config, choices)
    if isinstance(config, dict):
        config["weights_sha256"] = hashlib.sha256(files["model.safetensors"]).hexdigest()
    files["config.json"] = text_of(config, choices)
    _fill(folder, files)
    found = _survive(lambda: checkpoint.load(folder))
    for structure in found.structures.values() if found else ():
        if structure.shape[0] * structure.shape[1] < 2**20:
            structure.matvec(np.ones(structure.shape[1], np.float32))


def record_file(data: bytes, folder: Path) -> None:
    """A file of tuning records."""
    choices = Choices(data)
    _fill(folder, {"lstm.json": text_of(damage(_sound_records(), choices), choices)})
    _survive(lambda: records.read(folder / "lstm.json"))


def recipe(data: bytes, folder: Path) -> None:
    """A recipe in YAML, damaged as a tree or as a text."""
    from tvm_doping.models import load_recipe

    choices, (text, tree) = Choices(data), _sound_recipe()
    if choices.below(2):
        content = _bytes(text.encode(), choices)
    else:
        tree = damage(tree, choices)
        content = yaml.safe_dump(tree).encode("utf-8", "surrogatepass")
    _fill(folder, {"recipe.yaml": content})
    _survive(lambda: load_recipe(folder / "recipe.yaml"))


def raw_bytes(data: bytes, folder: Path) -> None:
    """The bytes themselves, as each kind of file."""
    from tvm_doping.models import load_recipe

    names = ("bundle.json", "config.json", "model.safetensors", "records.json", "recipe.yaml")
    _fill(folder, dict.fromkeys(names, data))
    for read in (
        lambda: Bundle.load(folder, any_machine=True),
        lambda: checkpoint.load(folder),
        lambda: records.read(folder / "records.json"),
        lambda: load_recipe(folder / "recipe.yaml"),
    ):
        _survive(read)


def library(data: bytes, folder: Path) -> None:
    """An ELF file."""
    content = _bytes(_sound_bundle()["lib.so"], Choices(data))
    with suppress(ValueError):
        SharedLibrary.read(content)


TARGET: dict[str, Callable[[bytes, Path], None]] = {
    "bundle": bundle,
    "run-folder": run_folder,
    "records": record_file,
    "recipe": recipe,
    "bytes": raw_bytes,
    "library": library,
}


def _survive(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except DopingError as refusal:
        error = refusal
    assert len(str(error).encode()) < 20_000, "an error that nobody can read"
    return None


def _scalar(choices: Choices) -> Any:
    return copy.deepcopy(SCALARS[choices.below(len(SCALARS))])  # what is put in may be damaged next


def _places(tree: Any, found: list[tuple[Any, Any]], deep: int = 0) -> None:
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        found.append((tree, key))
        if deep < 20:
            _places(tree[key], found, deep + 1)


def _tensors(content: bytes, choices: Choices) -> bytes:
    """A safetensors file with a damaged header, length or data."""
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], bytearray(content[8 + length :])
    match choices.below(4):
        case 0:
            length = (0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, len(content))[choices.below(8)]
            return length.to_bytes(8, "little") + header + data
        case 1:
            for _ in range(1 + choices.below(8)):
                at = choices.below(len(data))
                data[at : at + 4] = (
                    b"\0\0\xc0\x7f",
                    b"\xff\xff\xff\xff",
                    b"\xff\xff\xff\x7f",
                    b"\0\0\x80\xff",
                )[choices.below(4)]
            return content[: 8 + length] + bytes(data)
        case 2:
            return _bytes(content, choices)
    header = text_of(damage(json.loads(header), choices), choices)
    return len(header).to_bytes(8, "little") + header + data


def _bytes(content: bytes, choices: Choices) -> bytes:
    changed = bytearray(content)
    for _ in range(1 + choices.below(8)):
        at = choices.below(min(len(changed) + 1, 65536))
        match choices.below(4):
            case 0:
                changed[at : at + 1] = bytes([choices.below(256)])
            case 1:
                del changed[at : at + choices.below(64)]
            case 2:
                changed[at:at] = choices.rest()[:32]
            case 3:
                changed[at : at + 8] = (2 ** choices.below(64)).to_bytes(8, "little")
    return bytes(changed[: choices.below(len(changed))] if choices.below(8) == 0 else changed)


def _fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)


@lru_cache(maxsize=1)
def _sound_bundle() -> dict[str, bytes]:
    """A bundle that no code is loaded from: its library is an empty shared library, as far as its header goes."""
    rng = np.random.default_rng(0)
    features = TARGETS["x86-64-v2"].features
    manifest = Manifest(
        name="tiny",
        target=TargetSpec(name="x86-64-v2", features=features),
        inputs=(TensorSpec(name="x", shape=("T", "N", 3), dtype="float32"),),
        state=(TensorSpec(name="h", shape=("N", 2), dtype="float32"),),
        outputs=(TensorSpec(name="y", shape=("T", "N", 2), dtype="float32"),),
        layers=(LayerReport(name="l", op="lstm", bytes=24, plan={"a": [1, 2]}),),
        time_axis=0,
        tolerance=1e-5,
        golden_error=0.0,
        versions={"tvm": "0.27.0"},
        weights=("l.W", "b"),
    )
    golden = {"input.x": (2, 1, 3), "state.h": (1, 2), "output.y": (2, 1, 2), "new_state.h": (1, 2)}
    made = Bundle(
        manifest=manifest,
        library=_small_library(),
        weights={"l.W": rng.standard_normal((2, 3), np.float32), "b": np.arange(4, dtype="int64")},
        golden={name: rng.standard_normal(shape, np.float32) for name, shape in golden.items()},
        vocabulary=("a", "b"),
    )
    with tempfile.TemporaryDirectory() as place:
        folder = made.save(Path(place) / "b")
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def _small_library() -> bytes:
    """Any shared library that Python came with."""
    import importlib.machinery
    import importlib.util

    suffix = importlib.machinery.EXTENSION_SUFFIXES
    for name in ("_heapq", "_bisect", "_random", "_crypt"):
        spec = importlib.util.find_spec(name)
        if spec and spec.origin and spec.origin.endswith(tuple(suffix)):
            return Path(spec.origin).read_bytes()
    return b"\x7fELF\x02\x01" + bytes(200)


@lru_cache(maxsize=1)
def _sound_run() -> dict[str, bytes]:
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    S = sparse.random_array((6, 4), density=0.3, rng=rng, dtype=np.float32)
    structures = {
        "a": Doped(Kronecker(normal(2, 2), normal(3, 2)), S),
        "b": LowRank(normal(6, 2), normal(2, 4)),
        "c": Hybrid(normal(2, 4), normal(4, 1), normal(1, 4)),
    }
    config = {
        "task": "language_model",
        "model": {"vocab": 10},
        "vocabulary": ["x", "y"],
        "metrics": {"m": 1.5},
    }
    with tempfile.TemporaryDirectory() as place:
        folder = checkpoint.save(Path(place) / "r", config, {"bias": normal(6)}, structures)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@lru_cache(maxsize=1)
def _sound_recipe() -> tuple[str, Any]:
    from tvm_doping.models import load_recipe
    from tvm_doping.models.recipe import dump_recipe

    text = dump_recipe(load_recipe("lm-tiny"))
    return text, yaml.safe_load(text)


@lru_cache(maxsize=1)
def _sound_records() -> Any:
    return json.loads(
        records.files.to_text(records.RecordFile(device=DEVICE, operation="lstm", records=(record(),)))
    )
