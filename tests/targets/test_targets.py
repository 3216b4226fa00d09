"""Targets: the psABI levels, their names, and the detection of this machine."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from itertools import pairwise
from pathlib import Path

import pytest

from tvm_doping import cpu as cpu_room
from tvm_doping import targets
from tvm_doping.errors import TargetError
from tvm_doping.targets import KIB, MIB, TARGETS, resolve

# an Intel Haswell and a Zen 4, cut to what matters; "flags" of both cores of the first differ, as on hybrid
# CPUs
V2 = "fpu cx8 cmov mmx fxsr sse sse2 syscall pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm"
V3 = f"{V2} fma movbe xsave avx f16c abm bmi1 avx2 bmi2"
V4 = f"{V3} avx512f avx512dq avx512cd avx512bw avx512vl"
V4_BF16 = f"{V4} avx512_bf16"


def cpuinfo(folder: Path, *flags: str) -> str:
    path = folder / "cpuinfo"
    path.write_text(
        "\n\n".join(
            f"processor\t: {i}\nmodel name\t: Test CPU\nflags\t\t: {row}" for i, row in enumerate(flags)
        )
    )
    return str(path)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch):
    def pretend(flags: str) -> None:
        monkeypatch.setattr(targets, "cpu_features", lambda: frozenset(flags.split()))
        monkeypatch.setattr(targets, "arm_cores", lambda: ())

    return pretend


@pytest.mark.parametrize(
    ("flags", "name", "lanes"),
    [(V2, "x86-64-v2", 4), (V3, "x86-64-v3", 8), (V4, "x86-64-v4", 16), (V4_BF16, "x86-64-v4", 16)],
)
def test_auto_is_the_highest_level_the_cpu_has(cpu, flags, name, lanes):
    cpu(flags)
    found = resolve("auto")
    assert (found.name, found.lanes) == (name, lanes)
    assert found == resolve("native")


@pytest.mark.parametrize(
    "feature", [name for name in TARGETS["x86-64-v4"].features if name not in TARGETS["x86-64-v3"].features]
)
def test_one_feature_short_of_a_level_is_the_level_below(cpu, feature):
    cpu(V4.replace(feature, ""))
    assert resolve("auto").name == "x86-64-v3"
    assert targets.missing_features(TARGETS["x86-64-v4"].features) == [feature]


def test_a_cpu_below_every_level_is_refused_with_the_remedy(cpu):
    cpu("fpu sse sse2")
    with pytest.raises(TargetError, match="x86-64-v3"):
        resolve("auto")


def test_levels_are_those_of_the_psabi():
    assert len(TARGETS["x86-64-v2"].features) == 15
    for lower, higher in pairwise(row for row in TARGETS.values() if row.arch == "x86_64" and not row.gpu):
        assert set(lower.features) < set(higher.features)
        assert lower.lanes <= higher.lanes
    assert set(TARGETS["x86-64-v3"].features) - set(TARGETS["x86-64-v2"].features) == {
        "abm",
        "avx",
        "avx2",
        "bmi1",
        "bmi2",
        "f16c",
        "fma",
        "movbe",
        "xsave",
    }
    assert set(TARGETS["x86-64-v4-bf16"].features) - set(TARGETS["x86-64-v4"].features) == {"avx512_bf16"}
    assert TARGETS["x86-64-v4"].has("avx512f") and not TARGETS["x86-64-v3"].has("avx512f")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(TargetError, match="x86-64-v2, x86-64-v3, x86-64-v4"):
        resolve("znver17")


def test_a_target_resolves_to_itself_and_is_frozen():
    target = TARGETS["x86-64-v3"]
    assert resolve(target) is target
    with pytest.raises(FrozenInstanceError):
        target.lanes = 2  # type: ignore[misc]


def test_features_are_those_every_core_has(tmp_path):
    assert targets.cpu_features(cpuinfo(tmp_path, V4, V3)) == frozenset(V3.split())
    assert targets.cpu_features(str(tmp_path / "absent")) == frozenset()
    assert targets.cpu_name(cpuinfo(tmp_path, V2)) == "Test CPU"


def test_caches_are_read_from_sysfs(tmp_path):
    rows = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M")]
    for i, row in enumerate(rows):
        (tmp_path / f"index{i}").mkdir()
        for field, text in zip(("level", "type", "size"), row, strict=True):
            (tmp_path / f"index{i}" / field).write_text(text + "\n")
    assert [cpu_room.cache_bytes(level, str(tmp_path)) for level in (1, 2, 3)] == [48 * KIB, 2 * MIB, 0]


def test_without_sysfs_the_caches_are_still_plausible(tmp_path):
    l1 = cpu_room.cache_bytes(1, str(tmp_path / "absent"))
    assert l1 is None or 4 * KIB <= l1 <= MIB


def test_tvm_gets_the_cpu_the_attributes_and_the_cores():
    attrs = resolve("x86-64-v4").tvm().attrs
    assert attrs["mcpu"] == "x86-64-v4"
    assert list(attrs["mattr"]) == ["+prefer-no-gather", "-prefer-256-bit"]
    assert int(attrs["num-cores"]) == 1
    assert "mattr" not in resolve("x86-64-v2").tvm().attrs


def test_resolving_does_not_import_tvm_or_torch():
    code = (
        "import sys, tvm_doping.targets as t; t.resolve('auto');"
        "sys.exit(bool({'tvm', 'torch', 'tvm_ffi'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
