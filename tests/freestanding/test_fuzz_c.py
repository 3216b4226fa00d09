"""The C functions called in any order, with arguments of any kind, under Address- and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import tvm_doping
from tests.freestanding.conftest import language_model, tool
from tvm_doping import targets

HERE = "x86-64-v2"
SOURCE = Path(__file__).with_name("fuzz.c")


@pytest.mark.slow
@pytest.mark.skipif(bool(targets.missing_features(targets.TARGETS[HERE].features)), reason=f"not {HERE}")
def test_no_order_of_calls_breaks_it(tmp_path: Path) -> None:
    made = tvm_doping.compile_c(language_model(), HERE, prefix="lm", max_steps=4, weights="file")
    folder = made.save(tmp_path / "lm")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-g", "-O1", f"-I{folder}"]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = tmp_path / "fuzz"
    subprocess.run(
        [tool("gcc"), *flags, *checks, "-o", program, SOURCE, folder / "lm.c", folder / "kernels.o", "-lm"],
        check=True,
    )
    calls = os.environ.get("FUZZ_CALLS", "20000")  # each is one of seven functions
    done = subprocess.run([program, folder / "weights.bin", calls, "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{calls} calls" in done.stdout
