"""The C++ example: with TVM's runtime alone it reproduces the golden output, and reads no file that does not fit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundle.test_bundle import edit

SOURCE = Path(__file__).parents[2] / "examples" / "cpp"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake: apt-get install cmake"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cpp")
    subprocess.run(
        [
            "cmake",
            "-S",
            SOURCE,
            "-B",
            out,
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DCMAKE_BUILD_TYPE=Debug",
        ],
        check=True,
        capture_output=True,
    )
    done = subprocess.run(["cmake", "--build", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr
    return out / "run_bundle"


def test_the_golden_output_is_reproduced(program, saved):
    done = subprocess.run([program, saved], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("x86-64-v2: golden output reproduced")


def test_it_loads_no_compiler(program):
    linked = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    assert "libtvm_runtime" in linked and "libtvm_compiler" not in linked and "libpython" not in linked


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda raw: raw.update(format_version=1), "format version"),
        (lambda raw: raw["variants"][0]["weights"][0].update(shape=[5, 8]), "shape"),
        (lambda raw: raw["variants"][0]["weights"][0].update(shape=[2**62, 2**62]), "shape"),
        (lambda raw: raw["variants"][0]["weights"][0].update(dtype="int32"), "dtype"),
        (lambda raw: raw["variants"][0]["weights"][0].update(key="other"), "not there"),
        (lambda raw: raw["variants"][0]["target"]["features"].append("avx1024f"), "avx1024f"),
        (lambda raw: raw["variants"][0].update(library="../lib.so"), "elsewhere"),
        (lambda raw: raw["inputs"][0].update(shape=["T", "N", 9]), "'x'|x: not of the shape"),
        (lambda raw: raw["state"][0].update(shape=["T", 5]), "carry"),
        (lambda raw: raw.pop("inputs"), "inputs"),
    ],
)
def test_what_does_not_fit_is_refused(program, saved, change, word):
    edit(saved, change)
    done = subprocess.run([program, saved], capture_output=True, text=True)
    assert done.returncode == 1
    assert any(part in done.stderr for part in word.split("|")), done.stderr


@pytest.mark.parametrize("name", ["bundle.json", "weights.safetensors", "golden.safetensors"])
@pytest.mark.parametrize("length", [0, 7, 8, 100, -1])
def test_files_cut_short_are_refused(program, saved, name, length):
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[:length] if name != "bundle.json" or length != -1 else content[:-2])
    done = subprocess.run([program, saved], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("run_bundle: ")


def test_a_wrong_golden_value_is_found(program, saved):
    content = bytearray((saved / "golden.safetensors").read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    at = 8 + int.from_bytes(content[:8], "little") + header["output.y"]["data_offsets"][0]
    content[at : at + 4] = b"\0\0\xc0\x7f"  # NaN
    (saved / "golden.safetensors").write_bytes(content)
    done = subprocess.run([program, saved], capture_output=True, text=True)
    assert done.returncode == 1 and "off the golden values" in done.stderr
