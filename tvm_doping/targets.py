"""Targets: the machines that code is made for, and the detection of this one.

A target names an instruction set by its x86-64 psABI level, and what it has beyond one; it knows what the
schedules ask of a machine: how many fp32 lanes a register has, and how large its caches are. Importing this
module loads neither torch nor TVM.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_doping.errors import TargetError

if TYPE_CHECKING:
    from tvm.target import Target as TvmTarget

KIB = 1024
MIB = 1024 * KIB

# The x86-64 psABI's micro-architecture levels, in the names of /proc/cpuinfo: there SSE3 is "pni", LZCNT is
# "abm", and OSXSAVE and OSFXSR, which no flag names, follow from "xsave" and "fxsr" as Linux always enables
# what it lists.
_V1 = ("cmov", "cx8", "fpu", "fxsr", "mmx", "sse", "sse2", "syscall")
_V2 = (*_V1, "cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3")
_V3 = (*_V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
# No level of the psABI has the bfloat16 instructions: Zen 4, Cooper Lake, Sapphire Rapids and later have them.
_V4_BF16 = (*_V4, "avx512_bf16")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A machine to compile for.

    name      how users and bundles call it;
    mcpu      LLVM's name of the CPU; mattr: LLVM features added or taken away;
    features  what the CPU must have, as /proc/cpuinfo names it: a bundle asks for all of them before its code
              is loaded;
    lanes     fp32 values in one vector register;
    detected  whether "auto" may be this target; else it is for those who name it;
    cores     cores the code may use;
    l1 l2 l3  bytes of cache that one core reaches (data; 0 where there is none).
    """

    name: str
    mcpu: str
    mattr: tuple[str, ...] = ()
    features: tuple[str, ...]
    lanes: int
    detected: bool = True
    cores: int = 1
    l1: int = 32 * KIB
    l2: int = 1 * MIB
    l3: int = 16 * MIB

    def has(self, feature: str) -> bool:
        """Whether code for this target may rely on the CPU feature (a /proc/cpuinfo name)."""
        return feature in self.features

    def tvm(self) -> TvmTarget:
        """The same target as TVM takes it. Imports TVM."""
        from tvm.target import Target as TvmTarget

        # tuning needs num-cores; without it MetaSchedule refuses the target
        spec = {"kind": "llvm", "mcpu": self.mcpu, "mattr": list(self.mattr), "num-cores": self.cores}
        return TvmTarget({key: value for key, value in spec.items() if value != []})


# prefer-no-gather: a hardware gather of 16 lanes takes 22 cycles on Zen 4, more than 16 loads.
# prefer-256-bit is LLVM's default for x86-64-v4; with it every 512-bit loop becomes two of 256.
TARGETS: dict[str, Target] = {
    "x86-64-v2": Target(name="x86-64-v2", mcpu="x86-64-v2", features=_V2, lanes=4, l2=256 * KIB, l3=8 * MIB),
    "x86-64-v3": Target(
        name="x86-64-v3", mcpu="x86-64-v3", mattr=("+prefer-no-gather",), features=_V3, lanes=8, l2=512 * KIB
    ),
    "x86-64-v4": Target(
        name="x86-64-v4",
        mcpu="x86-64-v4",
        mattr=("+prefer-no-gather", "-prefer-256-bit"),
        features=_V4,
        lanes=16,
        l3=32 * MIB,
    ),
    "x86-64-v4-bf16": Target(
        name="x86-64-v4-bf16",
        mcpu="x86-64-v4",
        mattr=("+prefer-no-gather", "-prefer-256-bit", "+avx512bf16"),
        features=_V4_BF16,
        lanes=16,
        detected=False,  # what its one format costs is predicted, and not measured on any such CPU
        l3=32 * MIB,
    ),
}
DETECT = ("auto", "native")


def resolve(target: str | Target = "auto") -> Target:
    """The target of that name; "auto" (or "native"): the highest level this CPU has, its cores and caches.

    Raises TargetError for an unknown name, and for "auto" on a machine that no target describes.
    """
    if isinstance(target, Target):
        return target
    if target in DETECT:
        return detect()
    if target not in TARGETS:
        raise TargetError(
            f"target {target!r}",
            f"one of {', '.join((*DETECT, *TARGETS))}",
            repr(target),
            "List the targets with `tvm-doping targets`.",
        )
    return TARGETS[target]


def detect() -> Target:
    """The highest level whose features this CPU all has, with this machine's cores and caches."""
    have = cpu_features()
    for row in reversed(TARGETS.values()):
        if row.detected and have.issuperset(row.features):
            l1, l2, l3 = (_cache_bytes(level) for level in (1, 2, 3))
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            return replace(
                row, cores=cores, l1=l1 or row.l1, l2=l2 or row.l2, l3=row.l3 if l3 is None else l3
            )
    raise TargetError(
        "target 'auto'",
        f"an x86-64 CPU on Linux with at least {', '.join(_V2)}",
        f"{platform.machine()} on {platform.system()} with {' '.join(sorted(have)) or 'no features to read'}",
        "Name the target to compile for, e.g. x86-64-v3.",
    )


def missing_features(features: tuple[str, ...] | list[str]) -> list[str]:
    """Those of the named CPU features that this CPU lacks, sorted."""
    return sorted(set(features) - cpu_features())


@lru_cache(maxsize=1)
def cpu_features(cpuinfo: str = "/proc/cpuinfo") -> frozenset[str]:
    """What this CPU can do, as /proc/cpuinfo names it: the flags that all cores share; empty without such a
    file.
    """
    try:
        lines = Path(cpuinfo).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    rows = [
        line.partition(":")[2].split()
        for line in lines
        if line.partition(":")[0].strip() in ("flags", "Features")
    ]
    return frozenset.intersection(*map(frozenset, rows)) if rows else frozenset()


def cpu_name(cpuinfo: str = "/proc/cpuinfo") -> str:
    """The CPU's name as its maker gives it, for reports."""
    try:
        lines = Path(cpuinfo).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _cache_bytes(level: int, root: str = "/sys/devices/system/cpu/cpu0/cache") -> int | None:
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


def _size(text: str) -> int:
    """Bytes of a size as sysfs writes it: 48K, 32M or plain digits."""
    scale = {"K": KIB, "M": MIB, "G": KIB * MIB}.get(text[-1:].upper(), 1)
    digits = text if scale == 1 else text[:-1]
    return int(digits) * scale
