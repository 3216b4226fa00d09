"""Arm targets: detection from recorded /proc/cpuinfo texts, and the compilers that link for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tvm_doping import cpu, cross, targets
from tvm_doping.errors import TargetError
from tvm_doping.targets import TARGETS, resolve

V8 = "fp asimd evtstrm crc32 cpuid"
V8_CRYPTO = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
V82 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
GRAVITON3 = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 sm4"
    " asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca pacg dcpodp svei8mm svebf16 i8mm bf16 dgh rng"
)
GRAVITON3_OLD_KERNEL = GRAVITON3.partition(" paca")[0]  # Linux 5.4 does not know the later bits
GRAVITON4 = (
    GRAVITON3.replace(" sm3 sm4", "").replace("dcpodp", "dcpodp sve2 sveaes svebitperm flagm2 frint") + " bti"
)
M1_ASAHI = (
    f"{V82} sha3 sha512 jscvt fcma asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg dcpodp flagm2 frint"
)

# (chip, its cores as (implementer, part, features), the target); as Linux lists them
CHIPS = [
    ("BCM2837", [(0x41, 0xD03, V8)] * 4, "cortex-a53"),
    ("BCM2711", [(0x41, 0xD08, V8)] * 4, "cortex-a72"),
    ("BCM2712", [(0x41, 0xD0B, V82)] * 4, "cortex-a76"),
    ("RK3399", [(0x41, 0xD03, V8_CRYPTO)] * 4 + [(0x41, 0xD08, V8_CRYPTO)] * 2, "cortex-a72"),
    ("RK3588", [(0x41, 0xD05, V82)] * 4 + [(0x41, 0xD0B, V82)] * 4, "cortex-a76"),
    ("Graviton2", [(0x41, 0xD0C, V82 + " ssbs")] * 2, "neoverse-n1"),
    ("Graviton3", [(0x41, 0xD40, GRAVITON3)] * 2, "neoverse-v1"),
    # cores that no row is named after: the nearest by instructions
    ("Graviton4", [(0x41, 0xD4F, GRAVITON4)] * 2, "neoverse-v1"),
    ("Phytium D2000", [(0x70, 0x663, V8_CRYPTO)] * 8, "cortex-a72"),
    ("Apple M1 under Linux", [(0x61, 0x022, M1_ASAHI)] * 4 + [(0x61, 0x023, M1_ASAHI)] * 4, "cortex-a76"),
    # a core whose kernel hides some of what it can do: what is left
    ("Graviton3, old kernel", [(0x41, 0xD40, GRAVITON3_OLD_KERNEL)], "cortex-a76"),
]


def cpuinfo(folder: Path, cores: list[tuple[int, int, str]]) -> str:
    path = folder / "cpuinfo"
    path.write_text(
        "\n".join(
            f"processor\t: {i}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: {implementer:#x}\n"
            f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part:#05x}\nCPU revision\t: 3\n"
            for i, (implementer, part, features) in enumerate(cores)
        )
    )
    return str(path)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[list[tuple[int, int, str]]], str]:
    def chip(cores: list[tuple[int, int, str]]) -> str:
        path = cpuinfo(tmp_path, cores)
        monkeypatch.setattr(targets, "cpu_features", lambda: cpu.cpu_features(path))
        monkeypatch.setattr(targets, "arm_cores", lambda: cpu.arm_cores(path))
        return path

    cpu.cpu_features.cache_clear()
    return chip


@pytest.mark.parametrize(("chip", "cores", "name"), CHIPS, ids=[row[0] for row in CHIPS])
def test_chips(pretend, chip, cores, name):
    pretend(cores)
    found = resolve("auto")
    assert found.name == name
    assert targets.missing_features(found.features) == []
    assert (found.arch, found.lanes) == ("aarch64", 4)


def test_a_thread_may_run_on_any_core(pretend):
    """A chip whose small cores lack what its large ones have gets code that runs on both."""
    pretend([(0x41, 0xD03, V8), (0x41, 0xD0B, V82)])
    assert resolve("auto").name == "cortex-a53"


def test_arm_code_is_not_for_x86_and_the_other_way_round(pretend):
    pretend([(0x41, 0xD08, V8)])
    assert "sse2" in targets.missing_features(TARGETS["x86-64-v2"].features)
    assert targets.missing_features(TARGETS["cortex-a76"].features)


def test_a_32_bit_system_is_refused(pretend):
    pretend(
        [
            (
                0x41,
                0xD08,
                "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32",
            )
        ]
    )
    with pytest.raises(TargetError, match="64-bit Arm"):
        resolve("auto")


def test_names_for_reports(tmp_path):
    absent, board = str(tmp_path / "absent"), tmp_path / "model"
    board.write_bytes(b"Raspberry Pi 4 Model B Rev 1.4\0")
    mixed = cpuinfo(tmp_path, CHIPS[3][1])
    assert cpu.cpu_name(mixed, absent) == "Cortex-A53 and Cortex-A72"
    assert (
        cpu.cpu_name(cpuinfo(tmp_path, CHIPS[1][1]), str(board))
        == "Cortex-A72 (Raspberry Pi 4 Model B Rev 1.4)"
    )
    assert cpu.cpu_name(cpuinfo(tmp_path, [(0x70, 0x663, V8)]), absent) == "Arm core 0x70/0x663"


def test_damaged_part_numbers_are_passed_over(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("CPU implementer\t: zero\nCPU part\t:\n\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n")
    assert cpu.arm_cores(str(path)) == ((0x41, 0xD08),)
    assert cpu.arm_cores(str(tmp_path / "absent")) == ()


@pytest.mark.parametrize("name", [name for name, row in TARGETS.items() if row.arch == "aarch64"])
def test_tvm_knows_the_core(name):
    attrs = TARGETS[name].tvm().attrs
    assert attrs["mcpu"] == name and bool(attrs["feature.has_asimd"])
    assert bool(attrs["feature.has_sve"]) == TARGETS[name].has("sve")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An x86-64 Linux with nothing on its PATH but a folder."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def executable(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_debians_cross_compiler_is_found(elsewhere, monkeypatch):
    executable(elsewhere / "aarch64-linux-gnu-g++")
    assert cross.compiler(TARGETS["cortex-a72"]) == "aarch64-linux-gnu-g++"
    mine = executable(elsewhere / "mine")
    monkeypatch.setenv("CXX_aarch64_linux_gnu", str(mine))
    assert cross.compiler(TARGETS["cortex-a72"]) == str(mine)
    assert cross.compiler(TARGETS["x86-64-v3"]) is None


@pytest.mark.parametrize(
    ("language", "package"), [("c++", "g++-aarch64-linux-gnu"), ("c", "gcc-aarch64-linux-gnu")]
)
def test_a_missing_cross_compiler_is_an_error_with_the_line_that_installs_it(elsewhere, language, package):
    with pytest.raises(TargetError) as caught:
        cross.compiler(TARGETS["cortex-a72"], language)
    assert caught.value.remedy == f"Install it: sudo apt-get install {package}"


def test_no_debian_package_links_for_macos(elsewhere):
    with pytest.raises(TargetError, match="CXX_arm64_apple_macos11"):
        cross.compiler(TARGETS["apple-m1"])


def test_an_arm_host_links_for_itself(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert cross.compiler(TARGETS["cortex-a72"]) is None and TARGETS["x86-64-v3"].foreign
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert cross.compiler(TARGETS["apple-m1"]) is None and TARGETS["cortex-a72"].foreign


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None, reason="needs Debian's package g++-aarch64-linux-gnu"
)
@pytest.mark.slow
def test_a_model_is_compiled_for_another_machine():
    """An ELF file for aarch64 (e_machine 183), and a manifest that says that nothing was compared."""
    import torch

    from tests.tuning.making import small
    from tvm_doping import compile

    bundle = compile(small(), "cortex-a72", example=(torch.zeros(2, 1, 32),))
    assert bundle.library[:4] == b"\x7fELF" and int.from_bytes(bundle.library[18:20], "little") == 183
    assert bundle.manifest.target.name == "cortex-a72" and bundle.manifest.golden_error is None
