"""Targets: the machines that code is made for, and the detection of this one.

A target is an x86-64 psABI level and what it has beyond one, or an Arm core; it knows what the schedules ask of a
machine: how many fp32 lanes a register has, and how large its caches are. Importing this module loads neither torch
nor TVM.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tvm_doping.cpu import ARM_CORES, arm_cores, cache_bytes, cpu_features, cpu_name
from tvm_doping.errors import TargetError
from tvm_doping.gpu import PREFIX, lacking

if TYPE_CHECKING:
    from tvm.target import Target as TvmTarget

__all__ = [
    "DETECT",
    "TARGETS",
    "Target",
    "cpu_features",
    "cpu_name",
    "detect",
    "missing_features",
    "resolve",
    "several",
]

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

# Of Arm's features those that LLVM may use for the core, not all that it has: the optional cryptography is left out.
_ARMV8 = ("asimd", "fp")
_ARMV8_2 = (*_ARMV8, "asimddp", "asimdhp", "asimdrdm", "atomics", "fphp", "lrcpc")
_SVE = (*_ARMV8_2, "asimdfhm", "bf16", "fcma", "i8mm", "jscvt", "sve", "svebf16", "svei8mm")
_M1 = (*_ARMV8_2, "asimdfhm", "fcma", "jscvt")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A machine to compile for.

    name      how users and bundles call it;
    mcpu      LLVM's name of the CPU; mattr: LLVM features added or taken away;
    triple    architecture, system and ABI, as LLVM and cross compilers name them;
    features  what the CPU must have, as /proc/cpuinfo names it: a bundle asks for all of them before its code
              is loaded;
    lanes     fp32 values in one vector register;
    detected  whether "auto" may be this target; else it is for those who name it;
    cores     cores the code may use;
    l1 l2 l3  bytes of cache that one core reaches (data; 0 where there is none);
    gpu       the architecture of the GPU that layers run on, as nvcc names it ("" for a CPU); the rest is then that of its host;
    multiprocessors  of that GPU, and shared: the bytes of shared memory that a block may take.
    """

    name: str
    mcpu: str
    mattr: tuple[str, ...] = ()
    triple: str = "x86_64-linux-gnu"
    features: tuple[str, ...]
    lanes: int
    detected: bool = True
    cores: int = 1
    l1: int = 32 * KIB
    l2: int = 1 * MIB
    l3: int = 16 * MIB
    gpu: str = ""
    multiprocessors: int = 0
    shared: int = 0

    def has(self, feature: str) -> bool:
        """Whether code for this target may rely on the CPU feature (a /proc/cpuinfo name)."""
        return feature in self.features

    @property
    def arch(self) -> str:
        """The instruction set architecture, "x86_64", "aarch64" or "arm64" (which is Apple's word for aarch64)."""
        return self.triple.partition("-")[0]

    @property
    def foreign(self) -> bool:
        """Whether this machine needs a cross compiler to link for it."""
        return (self.arch, "linux" in self.triple) != (platform.machine(), platform.system() == "Linux")

    def tvm(self) -> TvmTarget:
        """The same target as TVM takes it. Imports TVM."""
        from tvm.target import Target as TvmTarget

        # tuning needs num-cores; without it MetaSchedule refuses the target
        spec = {"kind": "llvm", "mcpu": self.mcpu, "mattr": list(self.mattr), "num-cores": self.cores}
        if self.foreign:
            spec["mtriple"] = self.triple
        host = {key: value for key, value in spec.items() if value != []}
        return TvmTarget({"kind": "cuda", "arch": self.gpu}, host=host) if self.gpu else TvmTarget(host)


def _cuda(number: int, multiprocessors: int, shared: int) -> Target:
    """An NVIDIA GPU beside an x86-64 CPU. Its code runs on later ones too, which the number of multiprocessors is not made for."""
    return Target(
        name=f"cuda-sm{number}",
        mcpu="x86-64-v2",
        features=(*_V2, f"{PREFIX}sm_{number}"),
        lanes=4,
        detected=False,  # nothing has run on a GPU yet
        gpu=f"sm_{number}",
        multiprocessors=multiprocessors,
        shared=shared,
    )


def _neon(
    name: str, features: tuple[str, ...], *, l1: int = 32 * KIB, l2: int = 1 * MIB, l3: int = 0
) -> Target:
    """A 64-bit Arm core, which LLVM calls by the same name."""
    triple = "aarch64-linux-gnu"
    return Target(name=name, mcpu=name, triple=triple, features=features, lanes=4, l1=l1, l2=l2, l3=l3)


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
    # Arm: of two that a chip has the later is preferred. NEON registers hold 4 lanes. The caches are those of the chip
    # named, by its maker's data sheet; what several cores share counts whole.
    "cortex-a53": _neon("cortex-a53", _ARMV8, l2=512 * KIB),  # BCM2837: Raspberry Pi 3
    "cortex-a72": _neon("cortex-a72", _ARMV8),  # BCM2711: Raspberry Pi 4
    "cortex-a76": _neon(
        "cortex-a76", _ARMV8_2, l1=64 * KIB, l2=512 * KIB, l3=2 * MIB
    ),  # BCM2712: Raspberry Pi 5
    "neoverse-n1": _neon("neoverse-n1", _ARMV8_2, l1=64 * KIB, l3=32 * MIB),  # AWS Graviton2
    "neoverse-v1": _neon("neoverse-v1", _SVE, l1=64 * KIB, l3=32 * MIB),  # AWS Graviton3
    "apple-m1": replace(  # its fast cores
        _neon("apple-m1", _M1, l1=128 * KIB, l2=12 * MIB), triple="arm64-apple-macos11", detected=False
    ),
    "cuda-sm80": _cuda(80, 108, 163 * KIB),  # A100
    "cuda-sm90": _cuda(90, 132, 227 * KIB),  # H100 and H200
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


def several(targets: str | Target | Sequence[str | Target]) -> list[Target]:
    """The targets of these names, or of one. Raises TargetError as `resolve` does, for none, and for one that is given twice."""
    given = [targets] if isinstance(targets, str | Target) else list(targets)
    found = [resolve(target) for target in given]
    names = [target.name for target in found]
    if not names or len(set(names)) != len(names):
        raise TargetError(
            "targets", "at least one, each once", ", ".join(names) or "none", "Name each target once."
        )
    return found


def detect() -> Target:
    """The target that suits this CPU best and whose features it all has, with this machine's cores and caches.

    x86-64: the highest level. Arm: by the cores' part numbers, of several kinds (big.LITTLE) the fastest; the features
    must be those of all cores, as a thread may run on any.
    """
    have = cpu_features()
    able = [row for row in TARGETS.values() if row.detected and have.issuperset(row.features)]
    if able:
        meant = {ARM_CORES[core][1] for core in arm_cores() if core in ARM_CORES}
        row = next((row for row in reversed(able) if row.name in meant), _unknown(able))
        l1, l2, l3 = (cache_bytes(level) for level in (1, 2, 3))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return replace(row, cores=cores, l1=l1 or row.l1, l2=l2 or row.l2, l3=row.l3 if l3 is None else l3)
    raise TargetError(
        "target 'auto'",
        f"Linux on an x86-64 CPU with at least {', '.join(_V2)}, or on a 64-bit Arm CPU with {', '.join(_ARMV8)}",
        f"{platform.machine()} on {platform.system()} with {' '.join(sorted(have)) or 'no features to read'}",
        "Name the target to compile for, e.g. x86-64-v3.",
    )


def missing_features(features: tuple[str, ...] | list[str]) -> list[str]:
    """Those of the named features that this CPU lacks, and its GPU, sorted."""
    ours = {feature for feature in features if feature.startswith(PREFIX)}
    return sorted({f for f in ours if lacking(f)} | set(features) - ours - cpu_features())


def _unknown(able: list[Target]) -> Target:
    """For a CPU that no part number names: the highest level, of Arm's the middle-sized core with most of its features."""
    most = max(len(row.features) for row in able)
    same = [row for row in able if len(row.features) == most]
    return next((row for row in same if row.name in ("cortex-a72", "cortex-a76")), same[-1])
