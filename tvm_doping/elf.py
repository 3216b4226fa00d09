"""What a shared library says of itself: its header, symbols and needs, read from its bytes without loading it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

MACHINES = {62: "x86_64", 183: "aarch64", 40: "arm", 243: "riscv"}
_SHARED, _DYNAMIC, _DYNSYM, _NOBITS = 3, 6, 11, 8  # e_type; sh_type
_NEEDED, _RPATH, _RUNPATH = 1, 15, 29  # d_tag
_MOST_SECTIONS = 4096


@dataclass(frozen=True, kw_only=True)
class SharedLibrary:
    """machine: as platform.machine() has it; defines, asks: its dynamic symbols, and those it takes from elsewhere; needs: the
    libraries it loads; paths: where it has them looked for.
    """

    machine: str
    defines: frozenset[str]
    asks: frozenset[str]
    needs: tuple[str, ...]
    paths: tuple[str, ...]

    @classmethod
    def read(cls, content: bytes) -> Self:
        """ValueError for anything but a whole 64-bit little-endian ELF shared library. Source: System V ABI, chapter 4."""
        if content[:6] != b"\x7fELF\x02\x01":
            raise ValueError("a 64-bit little-endian ELF file")
        kind, machine = _unpack("<HH", content, 16)
        if kind != _SHARED:
            raise ValueError("an ELF shared library")
        sections = section_table(content)
        for _, kind, _, _, offset, length, *_ in sections:
            if kind not in (0, _NOBITS) and offset + length > len(content):
                raise ValueError(f"all of its sections, the last of which ends at byte {offset + length}")
        defines, asks, tags = set(), set(), []
        for _, kind, _, _, offset, length, link, *_ in sections:
            if kind not in (_DYNSYM, _DYNAMIC):
                continue
            if link >= len(sections):
                raise ValueError("names of its symbols")
            names = content[sections[link][4] : sections[link][4] + sections[link][5]]
            if kind == _DYNSYM:
                for at in range(offset + 24, offset + length - 23, 24):  # the first is empty
                    name, info, _, index, *_ = _unpack("<IBBHQQ", content, at)
                    weak = info >> 4 == 2
                    if index:
                        defines.add(_text(names, name))
                    elif not weak:
                        asks.add(_text(names, name))
            else:
                tags += [(tag, _text(names, value)) for tag, value in _tags(content, offset, length)]
        return cls(
            machine=MACHINES.get(machine, f"machine {machine}"),
            defines=frozenset(defines),
            asks=frozenset(asks),
            needs=tuple(text for tag, text in tags if tag == _NEEDED),
            paths=tuple(text for tag, text in tags if tag in (_RPATH, _RUNPATH)),
        )


def section_table(content: bytes) -> list[tuple[int, ...]]:
    """The sections' headers, the fields of Elf64_Shdr: name, type, flags, address, offset, size, link, ...

    Of a 64-bit little-endian file; ValueError where it has no such table.
    """
    (start,) = _unpack("<Q", content, 40)
    size, count = _unpack("<HH", content, 58)
    if size != 64 or not 0 < count <= _MOST_SECTIONS:
        raise ValueError("a table of ELF sections")
    return [_unpack("<IIQQQQIIQQ", content, start + 64 * index) for index in range(count)]


def _tags(content: bytes, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """The entries of the dynamic section whose values are names."""
    for at in range(offset, offset + length - 15, 16):
        tag, value = _unpack("<QQ", content, at)
        if not tag:
            return
        if tag in (_NEEDED, _RPATH, _RUNPATH):
            yield tag, value


def _text(names: bytes, at: int) -> str:
    end = names.find(b"\0", at)
    if at >= len(names) or end < 0:
        raise ValueError("names of its symbols")
    return names[at:end].decode("utf-8", "replace")


def _unpack(form: str, content: bytes, at: int) -> tuple[int, ...]:
    if at + struct.calcsize(form) > len(content):
        raise ValueError(f"more than {len(content)} bytes")
    return struct.unpack_from(form, content, at)
