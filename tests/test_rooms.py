"""The rooms of the package: each imports only rooms above it, and only the libraries it is meant to know."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tvm_doping

PACKAGE = Path(tvm_doping.__file__).parent

# From top to bottom; the rooms of one line are one level and may know each other. A bundle knows how to be
# stored and run, not how it is made, so it stands above `build`, which makes one.
LEVELS: tuple[tuple[str, ...], ...] = (
    (
        "errors",
        "arrays",
        "text",
        "subwords",
        "beam",
        "places",
        "heads",
        "comparing",
        "precisions",
        "strict_json",
    ),
    ("structures",),
    ("sparsity",),
    ("checkpoint",),
    ("models",),
    ("_tvm", "cpu", "gpu", "targets", "cross", "records"),
    ("frontend",),
    ("kernels",),
    ("schedules",),
    ("passes",),
    (
        "bundle",
        "bundle_files",
        "cuda",
        "document",
        "elf",
        "fitting",
        "verifying",
        "manifest",
        "signature",
        "golden",
        "opening",
        "replay",
        "stream",
        "runtime",
        "translating",
        "_runtime",
        "_threads",
    ),
    ("freestanding",),
    (
        "build",
        "build_c",
        "build_translator",
        "linking",
        "reading",
        "references",
        "remote",
        "rounding",
        "tuning",
    ),
    ("bench",),
    ("cli",),
    ("__init__", "__main__"),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

# What a room may import beside the standard library, where that is a short list.
ONLY: dict[str, set[str]] = {
    "errors": set(),
    "arrays": {"numpy"},
    "text": {"numpy"},
    "subwords": {"tokenizers"},
    "beam": {"numpy"},
    "places": set(),
    "heads": set(),
    "comparing": {"numpy"},
    "structures": {"numpy", "scipy"},
    "sparsity": {"numpy", "scipy"},
    "checkpoint": {"numpy", "scipy", "safetensors"},
    "cpu": set(),
    "gpu": set(),
    "cross": set(),
    "records": {"pydantic"},
    "strict_json": set(),
    "precisions": set(),
    "bundle": {"numpy"},
    "bundle_files": {"numpy", "safetensors", "pydantic"},
    "cuda": {"numpy"},
    "document": {"numpy", "pydantic"},
    "elf": set(),
    "fitting": set(),
    "verifying": {"numpy"},
    "manifest": {"pydantic"},
    "signature": {"numpy"},
    "golden": {"numpy"},
    "references": {"numpy"},
    "opening": set(),
    "stream": {"numpy"},
    "replay": {"numpy"},
    "runtime": {"numpy", "tvm_ffi"},
    "translating": {"numpy", "pydantic"},
    "_runtime": {"numpy", "tvm_ffi"},
    "_threads": set(),
    "__init__": set(),
    "__main__": set(),
}
# Who may know the two heavy ones, at all.
TORCH = {"models", "frontend", "build", "reading", "tuning", "bench", "cli"}
TVM = {
    "_tvm",
    "targets",
    "frontend",
    "kernels",
    "schedules",
    "passes",
    "freestanding",
    "build",
    "linking",
    "remote",
    "rounding",
    "tuning",
    "bench",
    "cli",
}
# Of these, who may do so only inside a function, to be imported in no time.
LATE = {"targets", "cli"}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST, path: Path) -> Iterator[tuple[str, bool, int]]:
    """(full dotted name, runs when the module is imported, line) of every import that runs at all."""
    package = ("tvm_doping", *path.relative_to(PACKAGE).parts[:-1])

    def visit(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool, int]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            children: list[ast.AST] = list(node.orelse)
        else:
            children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, at_import, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            for alias in node.names:
                yield f"{module}.{alias.name}", at_import, node.lineno
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in children:
            yield from visit(child, at_import and not inside)

    yield from visit(tree, True)


def complaints(path: Path, text: str) -> list[str]:
    """What is wrong with the imports of `path`, were its text `text`."""
    room, found = room_of(path), []
    for name, at_import, line in imports(ast.parse(text), path):
        top, *rest = name.split(".")
        where = f"{path.relative_to(PACKAGE)}:{line}: {room} imports {name}"
        if top == "tvm_doping" and rest != ["__version__"]:
            other = rest[0] if rest and rest[0] in LEVEL else "__init__"
            if room != "__init__" and LEVEL[other] > LEVEL[room]:
                found.append(f"{where}, a room below it")
        elif top not in sys.stdlib_module_names | {"tvm_doping"}:
            if room in ONLY and top not in ONLY[room]:
                found.append(f"{where}; it may import {sorted(ONLY[room]) or 'the standard library'} only")
            if top == "torch" and (room not in TORCH or (at_import and room in LATE)):
                found.append(f"{where}{' when imported' if room in TORCH else ''}")
            if top == "tvm" and (room not in TVM or (at_import and room in LATE)):
                found.append(f"{where}{' when imported' if room in TVM else ''}")
            if top in {"models", "schedules", "pickle", "cloudpickle"}:
                found.append(where)
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_room_imports_only_what_it_may(path: Path) -> None:
    assert room_of(path) in LEVEL, f"{path.name} belongs to no room: give it a place in LEVELS"
    assert complaints(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("structures/x.py", "import torch", "torch"),
        ("structures/x.py", "def f():\n    from ..passes import pipeline", "below"),
        ("sparsity/x.py", "from tvm_doping import build", "below"),
        ("kernels/x.py", "from torch.nn import LSTM", "torch"),
        ("models/x.py", "def f():\n    import tvm", "tvm"),
        ("runtime.py", "from tvm_doping.build import compile", "below"),
        ("runtime.py", "import tvm", "only"),
        ("cli/x.py", "import torch", "when imported"),
        ("cli/x.py", "if True:\n    import tvm", "when imported"),
        ("passes/x.py", "import schedules", "schedules"),
    ],
)
def test_a_breach_is_found(file: str, text: str, word: str) -> None:
    (complaint, *_) = complaints(PACKAGE / file, text)
    assert word in complaint


def test_what_only_types_need_is_no_breach() -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nelse:\n    import numpy"
    assert complaints(PACKAGE / "structures" / "x.py", text) == []
    assert complaints(PACKAGE / "cli" / "x.py", "def f():\n    import torch, tvm") == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("tvm_doping", {"torch", "tvm", "tvm_ffi", "numpy"}),
        ("tvm_doping.structures", {"torch", "tvm", "tvm_ffi"}),
        ("tvm_doping.sparsity", {"torch", "tvm", "tvm_ffi"}),
        ("tvm_doping.checkpoint", {"torch", "tvm", "tvm_ffi"}),
        ("tvm_doping.models", {"tvm", "tvm_ffi"}),
        ("tvm_doping.targets", {"torch", "tvm", "tvm_ffi"}),
        ("tvm_doping.records", {"torch", "tvm", "tvm_ffi"}),
        ("tvm_doping.bundle", {"torch", "tvm"}),
        ("tvm_doping.runtime", {"torch", "tvm"}),
        ("tvm_doping.translating", {"torch", "tvm", "tokenizers"}),
        ("tvm_doping.bench", {"torch", "tvm", "onnxruntime", "openvino", "matplotlib"}),
        ("tvm_doping.cli", {"torch", "tvm", "tvm_ffi", "numpy"}),
    ],
)
def test_importing_a_room_does_not_load(module: str, absent: set[str]) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert absent & set(json.loads(done.stdout)) == set()
