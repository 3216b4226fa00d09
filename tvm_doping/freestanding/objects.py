"""What an object file says of itself."""

from __future__ import annotations

import struct

from tvm_doping.elf import section_table

_ALLOCATED = 0x2  # SHF_ALLOC: part of the program, as debugging information is not


def loaded_bytes(code: bytes) -> int:
    """Bytes of code and constants that a 64-bit ELF or Mach-O object file brings into a program."""
    if code[:4] == b"\x7fELF":
        return sum(section[5] for section in section_table(code) if section[2] & _ALLOCATED)
    total, at = 0, 32
    (commands,) = struct.unpack_from("<I", code, 16)
    for _ in range(commands):
        command, length = struct.unpack_from("<II", code, at)
        if command == 0x19:  # LC_SEGMENT_64
            (sections,) = struct.unpack_from("<I", code, at + 64)
            for i in range(sections):
                begin = at + 72 + 80 * i
                segment = code[begin + 16 : begin + 32].rstrip(b"\0")
                (size,) = struct.unpack_from("<Q", code, begin + 40)
                total += 0 if segment in (b"__DWARF", b"__LD") else size
        at += length
    return int(total)
