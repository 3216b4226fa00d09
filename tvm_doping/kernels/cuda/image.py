"""From CUDA C to what a library carries: images of its kernels, made when it is compiled, so that loading needs no compiler.

TVM puts the source into the library and compiles it when it is loaded. Here the source is taken out of what TVM packs and the image
of `compile_image` is put in its place:

    packed := ... "cuda" u64(bytes) module ...     module := text(format) map(functions) text(source) ...
    text(s) := u64(len(s)) s
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm_ffi
from tvm.runtime import _ffi_api

from tvm_doping.errors import DopingError

Compile = Callable[[str], bytes]

_CALLBACK = "tvm_callback_cuda_compile"
_KIND = b"cuda"
_BINARY = b"cubin"  # what TVM hands to the driver as it is: fat binaries too


@contextmanager
def images(compile_image: Compile) -> Iterator[Callable[[Any, bool, str, str], str]]:
    """While it lasts, modules that are built get their images from `compile_image`.

    Gives what `export_library(fpack_imports=)` then takes: C code with the imported modules. Where TVM's CUDA runtime is loaded,
    as on a machine with a GPU, TVM asks for the image when it builds; else it packs the source, which is replaced there.
    """

    def pack(module: Any, is_system_lib: bool, prefix: str, folder: str) -> str:
        text = _ffi_api.ModulePackImportsToC(module, is_system_lib, prefix)
        found = re.search(r"unsigned char (\w+)\[\d+\] = \{(.*?)\};", text, re.DOTALL)
        if found is None:
            raise _strange("one array of bytes", text[:80])
        name, numbers = found.groups()
        packed = bytes(int(number, 16) for number in re.findall(r"0x([0-9a-fA-F]{2})", numbers))
        for source in _sources(module):
            if _text(source.encode()) in packed and _unbuilt(packed):
                packed = _replace(packed, source.encode(), compile_image(source))
        # a string of bytes compiles a hundred times as fast as a list of numbers
        rows = "\n".join(f'"{_escaped(packed[i : i + 64])}"' for i in range(0, len(packed), 64))
        path = Path(folder) / "imports.c"
        path.write_text(
            f'#ifdef __cplusplus\nextern "C" {{\n#endif\nextern const unsigned char {name}[];\n'
            f"const unsigned char {name}[{len(packed) + 1}] =\n{rows};\n#ifdef __cplusplus\n}}\n#endif\n",
            encoding="ascii",
        )
        return str(path)

    before = tvm_ffi.get_global_func(_CALLBACK, allow_missing=True)
    tvm_ffi.register_global_func(_CALLBACK, compile_image, override=True)
    try:
        yield pack
    finally:
        if before is not None:
            tvm_ffi.register_global_func(_CALLBACK, before, override=True)


def _sources(module: Any) -> list[str]:
    """The CUDA C of all modules that are imported, directly or not."""
    found = []
    for imported in module.imports:
        if imported.kind == "cuda":
            found.append(str(imported.inspect_source("cuda")))
        found += _sources(imported)
    return found


def _unbuilt(packed: bytes) -> bool:
    """Whether a packed module holds its source alone: its kind, its size, and "cuda" as its format."""
    kind = re.escape(_text(_KIND))
    return re.search(kind + b".{8}" + kind, packed, re.DOTALL) is not None


def _replace(packed: bytes, source: bytes, image: bytes) -> bytes:
    old = _text(source)
    at = packed.find(old)
    start = packed.rfind(
        _text(_KIND), 0, at
    )  # the module's format; right before it its size, and before that its kind
    if at < 0 or start < 0 or packed[start - 8 - len(_text(_KIND)) : start - 8] != _text(_KIND):
        raise _strange("a CUDA module's kind, size, format and source", "other contents")
    (size,) = struct.unpack("<Q", packed[start - 8 : start])
    module = packed[start : start + size]
    new = module.replace(old, _text(image), 1).replace(_text(_KIND), _text(_BINARY), 1)
    changed = packed[: start - 8] + struct.pack("<Q", len(new)) + new + packed[start + size :]
    (total,) = struct.unpack("<Q", packed[:8])  # of all that follows
    return struct.pack("<Q", total + len(new) - len(module)) + changed[8:]


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _escaped(piece: bytes) -> str:
    return "".join(f"\\{byte:03o}" for byte in piece)


def _strange(needs: str, got: str) -> DopingError:
    return DopingError(
        "the packed modules of a library",
        f"{needs}, as TVM 0.27 writes it",
        got,
        "Use the release of apache-tvm that pyproject.toml names.",
    )
