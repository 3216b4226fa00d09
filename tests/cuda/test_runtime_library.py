"""Which libcudart.so.13 a process has, where there are several: stand-ins that tell their number."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(
    shutil.which("g++") is None or sys.platform != "linux", reason="stand-ins need g++ on Linux"
)
@pytest.mark.parametrize("loaded", [True, False])
def test_a_library_that_is_loaded_stays_the_only_one(tmp_path: Path, loaded: bool) -> None:
    places = {1: tmp_path / "torch", 2: tmp_path / "packages" / "nvidia" / "cu13" / "lib"}
    for number, place in places.items():
        place.mkdir(parents=True)
        source = place / "number.cpp"
        source.write_text(f'extern "C" int number() {{ return {number}; }}')
        made = str(place / "libcudart.so.13")
        command = ["g++", "-shared", "-fPIC", "-Wl,-soname,libcudart.so.13", "-o", made, str(source)]
        subprocess.run(command, check=True)
    code = f"""
import ctypes
if {loaded}:
    ctypes.CDLL({str(places[1] / "libcudart.so.13")!r})
from tvm_doping import _runtime
_runtime._load_cudart()
_runtime._load_cudart()
print(ctypes.CDLL("libcudart.so.13").number(), ctypes.CDLL(None).number())
print(*sorted({{line.split()[-1] for line in open("/proc/self/maps") if "libcudart" in line}}))
"""
    paths = os.pathsep.join((str(tmp_path / "packages"), *sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    number = 1 if loaded else 2
    assert done.stdout.split() == [str(number), str(number), str(places[number] / "libcudart.so.13")], (
        done.stderr
    )
