"""This machine's CPU, as Linux describes it: features, name, caches, and the cores of an Arm chip.

Importing this module loads neither torch nor TVM.
"""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path

CPUINFO = "/proc/cpuinfo"
_FEATURES = ("flags", "Features")  # x86's word, and Arm's
_MODEL = "/proc/device-tree/model"  # the board, where there is no BIOS to ask

# Arm's "CPU implementer" and "CPU part": what the core is called, and the target whose code suits it best.
# Sources: the cores' technical reference manuals (MIDR_EL1), and arch/arm64/include/asm/cputype.h of Linux.
ARM_CORES: dict[tuple[int, int], tuple[str, str]] = {
    (0x41, 0xD03): ("Cortex-A53", "cortex-a53"),
    (0x41, 0xD04): ("Cortex-A35", "cortex-a53"),
    (0x41, 0xD05): ("Cortex-A55", "cortex-a53"),  # in order, two instructions a cycle, as the A53
    (0x41, 0xD07): ("Cortex-A57", "cortex-a72"),
    (0x41, 0xD08): ("Cortex-A72", "cortex-a72"),
    (0x41, 0xD09): ("Cortex-A73", "cortex-a72"),
    (0x41, 0xD0A): ("Cortex-A75", "cortex-a76"),
    (0x41, 0xD0B): ("Cortex-A76", "cortex-a76"),
    (0x41, 0xD0C): ("Neoverse-N1", "neoverse-n1"),
    (0x41, 0xD0D): ("Cortex-A77", "cortex-a76"),
    (0x41, 0xD40): ("Neoverse-V1", "neoverse-v1"),
    (0x41, 0xD41): ("Cortex-A78", "cortex-a76"),
    (0x41, 0xD44): ("Cortex-X1", "neoverse-n1"),
}


@lru_cache(maxsize=4)
def cpu_features(cpuinfo: str = CPUINFO) -> frozenset[str]:
    """What this CPU can do, as /proc/cpuinfo names it (on Arm the HWCAP bits): what all cores share; empty without such a
    file.
    """
    rows = [frozenset(value.split()) for key, value in _fields(cpuinfo) if key in _FEATURES]
    return frozenset.intersection(*rows) if rows else frozenset()


def arm_cores(cpuinfo: str = CPUINFO) -> tuple[tuple[int, int], ...]:
    """(implementer, part) of each kind of core of an Arm chip, in the order of the first of each kind; () elsewhere."""
    found: dict[tuple[int, int], None] = {}
    implementer = 0
    for key, value in _fields(cpuinfo):
        try:
            if key == "CPU implementer":
                implementer = int(value, 16)
            elif key == "CPU part":
                found[implementer, int(value, 16)] = None
        except ValueError:
            continue  # not a number: a kernel that writes something else
    return tuple(found)


def cpu_name(cpuinfo: str = CPUINFO, model: str = _MODEL) -> str:
    """The CPU's name as its maker gives it, for reports: on Arm the cores' names, and the board's if it has one."""
    names = [value for key, value in _fields(cpuinfo) if key == "model name" and value]
    if names:
        return names[0]
    cores = [ARM_CORES.get(core, (f"Arm core {core[0]:#x}/{core[1]:#x}",))[0] for core in arm_cores(cpuinfo)]
    try:
        board = Path(model).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        board = ""
    known = " and ".join(cores) or platform.processor() or platform.machine()
    return f"{known} ({board})" if board else known


def cache_bytes(level: int, root: str = "/sys/devices/system/cpu/cpu0/cache") -> int | None:
    """Bytes of the data (or unified) cache of that level: sysfs, else libc; None where neither says."""
    found = False
    for index in sorted(Path(root).glob("index[0-9]*")):
        try:
            fields = [(index / name).read_text().strip() for name in ("level", "type", "size")]
        except OSError:
            continue
        found = True
        if fields[0] == str(level) and fields[1] != "Instruction":
            return _size(fields[2])
    if found:
        return 0  # sysfs lists the caches, and this one is not among them
    names = {1: "SC_LEVEL1_DCACHE_SIZE", 2: "SC_LEVEL2_CACHE_SIZE", 3: "SC_LEVEL3_CACHE_SIZE"}
    try:
        return os.sysconf(names[level]) or None
    except (ValueError, OSError, AttributeError):
        return None


def _fields(cpuinfo: str) -> list[tuple[str, str]]:
    try:
        lines = Path(cpuinfo).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [(key.strip(), value.strip()) for key, colon, value in pairs if colon]


def _size(text: str) -> int:
    """Bytes of a size as sysfs writes it: 48K, 32M or plain digits."""
    scale = {"K": 1024, "M": 1024**2, "G": 1024**3}.get(text[-1:].upper(), 1)
    digits = text if scale == 1 else text[:-1]
    return int(digits) * scale
