"""What the devices are that speeds are predicted for: core, clock, and how fast one core reads each level of its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from tvm_doping.errors import BenchError
from tvm_doping.targets import KIB, MIB


@dataclass(frozen=True, kw_only=True)
class Device:
    """A core on a board.

    target   what is compiled for; mca: llvm-mca's name of the core, since which version of LLVM.
    ghz      its clock; penalty: cycles of a mispredicted branch; learnt: how often a branch may go the unusual way in a step for
             the core to know it by heart from the step before (0: it never does).
    levels   (name, bytes, GB/s) of each cache, nearest first, as one core reads it in order; memory: GB/s.
    sources  where each number is from; what no source gives is named as assumed.
    """

    name: str
    target: str
    board: str
    mca: str
    llvm: int = 14
    ghz: float
    penalty: int
    learnt: int = 0
    levels: tuple[tuple[str, int, float], ...]
    memory: float
    sources: Mapping[str, str]

    def level(self, size: float) -> str:
        """The nearest level that holds so many bytes, read over and over."""
        return next((name for name, room, _ in self.levels if size <= room), "memory")

    def bandwidth(self, level: str) -> float:
        """GB/s of a level."""
        return next((rate for name, _, rate in self.levels if name == level), self.memory)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


_SIZES = "the maker's data sheet: tvm_doping.targets"
_STREAM = (
    "STREAM on a Raspberry Pi 4 (sci-pi.org.uk/bench/stream.html): copy 5.53, add 4.86 GB/s; between them"
)

# The table of devices. Change a number here and every prediction for the device follows; `sources` says what to trust.
DEVICES: dict[str, Device] = {
    "zen3": Device(
        name="zen3",
        target="x86-64-v3",
        board="AMD EPYC 7003 (Zen 3), one core of a shared server",
        mca="znver3",
        ghz=3.2,
        penalty=13,
        learnt=1000,
        levels=(("L1", 32 * KIB, 204.0), ("L2", 512 * KIB, 102.0), ("L3", 32 * MIB, 47.0)),
        memory=17.0,
        sources={
            "ghz, bandwidths": "measured by tvm_doping.bench.ceilings, two FMAs a cycle",
            "penalty": "assumed",
            "learnt": "assumed; fits the validation",
        },
    ),
    "cortex-a53": Device(
        name="cortex-a53",
        target="cortex-a53",
        board="Raspberry Pi 3 B+ (BCM2837B0), 1.4 GHz",
        mca="cortex-a53",
        ghz=1.4,
        penalty=8,
        levels=(("L1", 32 * KIB, 11.2), ("L2", 512 * KIB, 5.6)),
        memory=2.0,
        sources={
            "ghz": "assumed: the clock that the board is sold with",
            "sizes": _SIZES,
            "L1, L2": "assumed: a 64-bit load port, 8 and 4 bytes a cycle",
            "memory": "assumed: LPDDR2-900, 32 bits, 3.6 GB/s at most, of which one core gets 55 %",
            "penalty": "assumed: a pipeline of 8 stages",
        },
    ),
    "cortex-a72": Device(
        name="cortex-a72",
        target="cortex-a72",
        board="Raspberry Pi 4 B (BCM2711), 1.5 GHz",
        mca="cortex-a72",
        ghz=1.5,
        penalty=15,
        levels=(("L1", 32 * KIB, 24.0), ("L2", 1 * MIB, 12.0)),
        memory=5.0,
        sources={
            "ghz": "magpi.raspberrypi.com/articles/raspberry-pi-4-specs-benchmarks: BCM2711B0, 1.5 GHz",
            "sizes": _SIZES,
            "L1": "assumed: a load of 16 bytes a cycle, as in llvm-mca's model of the core",
            "L2": "assumed: 8 bytes a cycle, half of L1",
            "memory": _STREAM,
            "penalty": "assumed: a pipeline of 15 stages",
        },
    ),
    "cortex-a76": Device(
        name="cortex-a76",
        target="cortex-a76",
        board="Raspberry Pi 5 (BCM2712), 2.4 GHz",
        mca="neoverse-n1",
        llvm=17,
        ghz=2.4,
        penalty=11,
        levels=(("L1", 64 * KIB, 76.8), ("L2", 512 * KIB, 48.0), ("L3", 2 * MIB, 24.0)),
        memory=10.0,
        sources={
            "ghz, sizes": "threedots.ovh/blog/2023/09/gathering-some-raspberry-pi-5-details: 2.4 GHz, 64K/512K/2M",
            "mca": "the model of Neoverse N1, which is the same core for servers; LLVM has none of its own for A76",
            "L1, L2, L3": "assumed: 32, 20 and 10 bytes a cycle",
            "memory": "assumed: 60 % of the 17 GB/s that the same page gives for LPDDR4X-4267, 32 bits",
            "penalty": "assumed: a pipeline of 11 stages",
        },
    ),
    "neoverse-n1": Device(
        name="neoverse-n1",
        target="neoverse-n1",
        board="AWS Graviton2, one core, 2.5 GHz",
        mca="neoverse-n1",
        llvm=17,
        ghz=2.5,
        penalty=11,
        levels=(("L1", 64 * KIB, 80.0), ("L2", 1 * MIB, 50.0), ("L3", 32 * MIB, 25.0)),
        memory=15.0,
        sources={
            "ghz": "assumed",
            "sizes": _SIZES,
            "L1, L2, L3": "assumed: 32, 20 and 10 bytes a cycle; the L3 is shared by 64 cores",
            "memory": "assumed, of one core alone",
            "penalty": "assumed: a pipeline of 11 stages",
        },
    ),
}  # fmt: skip


def device_of(target: str) -> Device:
    """The device for a target's name, or of that name. BenchError for a target of which no device is known."""
    if target in DEVICES:
        return DEVICES[target]
    for device in DEVICES.values():
        if device.target == target:
            return device
    known = ", ".join(device.target for device in DEVICES.values())
    raise BenchError(f"a prediction for {target}", f"one of {known}", repr(target), "Name one of these.")


def measured(device: Device, gbs: Mapping[str, float], gmacs: float, lanes: int) -> Device:
    """The device with the bandwidths (by level, "memory" too) and the clock (of two FMAs a cycle) that were found on it."""
    levels = tuple((name, size, gbs.get(name, rate)) for name, size, rate in device.levels)
    return replace(device, levels=levels, memory=gbs.get("memory", device.memory), ghz=gmacs / (2 * lanes))
