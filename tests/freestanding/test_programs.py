"""Folders of C: they build with the strictest warnings, and give what PyTorch gave."""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tvm_doping
from tests.freestanding.conftest import Both, Sequences, Timeless, language_model, make, tool
from tvm_doping import checkpoint, cli, models, targets
from tvm_doping.errors import BundleError, InvalidInput, UnsupportedModel
from tvm_doping.freestanding.report import Report, read_report
from tvm_doping.freestanding.source import fill
from tvm_doping.models import LanguageModel

HERE = "x86-64-v2"

pytestmark = pytest.mark.skipif(
    bool(targets.missing_features(targets.TARGETS[HERE].features)), reason=f"this CPU cannot run {HERE}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, at most 4 steps at once."""
    made = tvm_doping.compile_c(language_model(), HERE, prefix="lm", max_steps=4)
    return made.save(tmp_path_factory.mktemp("c") / "lm")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_it_gives_what_pytorch_gave(folder: Path, compiler: str) -> None:
    make(folder, "clean")
    said = make(folder, "check", f"CC={tool(compiler)}", "CFLAGS=-O2 -pedantic")
    assert "all as PyTorch gave it" in said and "FAILED" not in said
    assert len(re.findall("step by step: difference", said)) == 3
    make(folder, "clean")


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (language_model(), {"head": "top_k:3", "batch": 3, "weights": "file"}),
        (language_model(), {"head": "argmax", "precision": "fp16", "max_steps": 1}),
        (Sequences(), {"batch": 2, "max_steps": 3}),
        (Both(), {}),
        (Timeless(), {"example": (torch.randn(1, 24),)}),
    ],
    ids=["batch, head and weights apart", "fp16", "batch first", "no stream", "no time"],
)
def test_models(model: nn.Module, options: dict[str, Any], tmp_path: Path) -> None:
    made = tvm_doping.compile_c(model, HERE, **options)
    said = make(made.save(tmp_path / "c"), "check", f"CC={tool('gcc')}")
    assert "all as PyTorch gave it" in said


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("cortex-a72", {"head": "argmax"}),
        ("cortex-a76", {"precision": "fp16", "batch": 4, "weights": "file"}),
    ],
    ids=["cortex-a72", "cortex-a76"],
)
def test_it_is_the_same_on_an_emulated_arm_core(target: str, options: dict[str, Any], tmp_path: Path) -> None:
    """By GCC and Clang, the program and one in C++, which give the same."""
    run = f"RUN={tool('qemu-aarch64-static')} -cpu {target} -L /usr/aarch64-linux-gnu"
    made = tvm_doping.compile_c(language_model(), target, prefix="lm", **options)
    folder = made.save(tmp_path / "arm")
    for compiler in (tool("aarch64-linux-gnu-gcc"), f"{tool('clang')} --target=aarch64-linux-gnu"):
        make(folder, "clean")
        said = make(folder, "check", "measure", run, f"CC={compiler}", "CFLAGS=-O2 -pedantic")
        assert "all as PyTorch gave it" in said
        assert _stack(said) <= made.report.sizes.frame + 512
    assert _vectors(folder / "kernels.o")
    strict = ["-std=c++11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-static", f"-I{folder}"]
    (tmp_path / "program.cc").write_text(CPP)
    command = [
        tool("aarch64-linux-gnu-g++"),
        *strict,
        str(tmp_path / "program.cc"),
        str(folder / "liblm.a"),
        "-lm",
    ]
    subprocess.run([*command, "-o", str(tmp_path / "program")], check=True)
    emulated = ["qemu-aarch64-static", "-cpu", target, str(tmp_path / "program")]
    assert subprocess.run(emulated, capture_output=True, text=True, check=True).stdout == "no error\n"


def test_for_macos_it_compiles_without_a_linker(monkeypatch: pytest.MonkeyPatch) -> None:
    """No code for it runs here; what a Mac's compiler needs is there."""
    monkeypatch.setenv("PATH", "")
    made = tvm_doping.compile_c(language_model(), "apple-m1", prefix="lm")
    assert made.files["kernels.o"][:4] == b"\xcf\xfa\xed\xfe"  # Mach-O, 64 bits
    assert made.report.golden_error is None and made.report.sizes.code > 0
    assert b"-static" not in made.files["Makefile"] and b"__TEXT,__const" in made.files["weights.S"]


CPP = """
#include "lm.h"
#include <cstdio>

int main()
{
    return std::puts(lm_error_text(lm_reset(nullptr) == LM_ERROR_NULL ? LM_OK : LM_ERROR_NULL)) < 0;
}
"""


def _vectors(kernels: Path) -> bool:
    """Whether code for Arm multiplies and adds four floats at once."""
    done = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", str(kernels)], capture_output=True, text=True, check=True
    )
    return bool(re.search(r"\tfmla\tv\d+\.4s", done.stdout))


def test_what_it_says_of_its_size_is_so(folder: Path) -> None:
    tool("gcc")
    sizes = read_report(folder).sizes
    assert _stack(make(folder, "measure")) <= sizes.frame + 512
    said = subprocess.run(
        ["size", str(folder / "kernels.o")], capture_output=True, text=True, check=True
    ).stdout
    text, data, bss = map(int, said.splitlines()[1].split()[:3])
    assert (text, data, bss) == (sizes.code, 0, 0)
    assert (folder / "weights.bin").stat().st_size == sizes.weights
    undefined = subprocess.run(
        ["nm", "-u", str(folder / "kernels.o")], capture_output=True, text=True, check=True
    )
    assert set(undefined.stdout.split()) <= {"U", "memcpy", "memset"}
    assert f"{sizes.memory:,}" in (folder / "README.md").read_text()


def _stack(said: str) -> int:
    (found,) = re.findall(r"^stack (\d+)$", said, re.MULTILINE)
    return int(found)


PROGRAM = """
#include "lm.h"
#include <cstdio>
#include <cstring>
#include <exception>
#include <thread>
#include <vector>

enum { STEPS = 33, MANY = 8 };
static int64_t tokens[MANY][STEPS];
static float got[MANY][STEPS * 300], wanted[STEPS * 300];

static void run(int which, float *output)
{
    std::vector<unsigned char> memory(LM_MEMORY_SIZE + 64, 0xAA);
    struct lm *model;
    if (lm_init(&model, memory.data() + which % 3, LM_MEMORY_SIZE)) std::terminate();
    for (int again = 0; again < 20; again++) {
        lm_reset(model);
        if (lm_run(model, STEPS, tokens[which], output)) std::terminate();
    }
    for (size_t i = LM_MEMORY_SIZE + which % 3; i < memory.size(); i++)
        if (memory[i] != 0xAA) std::terminate();
}

int main()
{
    for (int i = 0; i < MANY; i++)
        for (int t = 0; t < STEPS; t++) tokens[i][t] = (t * 7 + i * 31) % 300;
    std::vector<std::thread> threads;
    for (int i = 0; i < MANY; i++) threads.emplace_back(run, i, got[i]);
    for (auto &thread : threads) thread.join();
    for (int i = 0; i < MANY; i++) {
        run(i, wanted);
        if (std::memcmp(wanted, got[i], sizeof wanted)) return std::puts("threads differ"), 1;
    }

    static unsigned char memory[LM_MEMORY_SIZE];
    struct lm *model;
    struct lm_state state;
    int64_t token = 300;
    if (lm_init(&model, nullptr, sizeof memory) != LM_ERROR_NULL) return 2;
    if (lm_init(&model, memory, sizeof memory - 1) != LM_ERROR_MEMORY) return 3;
    if (lm_init(&model, memory, sizeof memory) || lm_step(model, &token, wanted) != LM_ERROR_INPUT) return 4;
    token = -1;
    if (lm_step(model, &token, wanted) != LM_ERROR_INPUT || lm_step(model, nullptr, wanted) != LM_ERROR_NULL) return 5;
    if (lm_run(model, 0, &token, wanted) != LM_ERROR_STEPS) return 6;
    /* nothing of these went on: as many single steps as a run, from a state that was set, give the same bits */
    if (lm_run(model, 5, tokens[1], wanted) || lm_get_state(model, &state)) return 7;
    if (lm_run(model, 1, tokens[2], wanted) || lm_set_state(model, &state)) return 8;
    if (lm_step(model, tokens[2], wanted + 300) || std::memcmp(wanted, wanted + 300, 1200)) return 9;
    return std::puts(lm_error_text(LM_OK)) < 0;
}
"""


@pytest.mark.parametrize("flags", [[], ["-fsanitize=address,undefined"]], ids=["plain", "sanitizers"])
def test_from_cpp_in_threads_and_with_mistakes(folder: Path, tmp_path: Path, flags: list[str]) -> None:
    make(folder, "clean")  # the driver is instrumented as the program is
    make(folder, "liblm.a", f"CC={tool('gcc')}", f"CFLAGS=-O1 {' '.join(flags)}")
    (tmp_path / "program.cc").write_text(PROGRAM)
    strict = ["-std=c++11", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic", "-pthread", *flags]
    command = [
        tool("g++"),
        *strict,
        "-I",
        str(folder),
        str(tmp_path / "program.cc"),
        str(folder / "liblm.a"),
        "-lm",
    ]
    subprocess.run([*command, "-o", str(tmp_path / "program")], check=True)
    make(folder, "clean")
    done = subprocess.run([str(tmp_path / "program")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "no error\n"), done.stderr[-2000:]


def test_a_file_of_weights_is_checked(tmp_path: Path) -> None:
    made = tvm_doping.compile_c(Sequences(), HERE, prefix="seq", weights="file", max_steps=2)
    folder = made.save(tmp_path / "c")
    sound = (folder / "weights.bin").read_bytes()
    make(folder, "check", f"CC={tool('gcc')}")
    for place in (3, 64, len(sound) // 2, len(sound) - 1):
        weights = bytearray(sound)
        weights[place] ^= 1
        (folder / "weights.bin").write_bytes(weights)
        done = subprocess.run([str(folder / "seq"), str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "not the weights of this model" in done.stderr
    with pytest.raises(BundleError, match=r"weights\.bin.*other contents"):
        read_report(folder)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=300))
def test_the_digest_is_sha256(content: bytes, digest: Callable[[bytes, bytes], int]) -> None:
    right = hashlib.sha256(content).digest()
    assert digest(content, right)
    assert not digest(content, right[:-1] + bytes([right[-1] ^ 1]))


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes, bytes], int]:
    """The C function alone."""
    folder = tmp_path_factory.mktemp("digest")
    text = "#include <stddef.h>\n#include <stdint.h>\n#include <string.h>\n" + fill("digest.c")
    (folder / "digest.c").write_text(text.replace("static int has_digest", "int has_digest"))
    command = [
        tool("gcc"),
        "-O1",
        "-shared",
        "-fPIC",
        str(folder / "digest.c"),
        "-o",
        str(folder / "digest.so"),
    ]
    subprocess.run(command, check=True)
    function = ctypes.CDLL(str(folder / "digest.so")).has_digest
    return lambda content, wanted: function(content, ctypes.c_size_t(len(content)), wanted)


def test_a_golden_value_that_differs_fails(folder: Path) -> None:
    make(folder, f"CC={tool('gcc')}")
    golden = np.frombuffer((folder / "golden.bin").read_bytes(), "float32").copy()
    golden[-1] += 1e-3
    before = (folder / "golden.bin").read_bytes()
    try:
        (folder / "golden.bin").write_bytes(golden.tobytes())
        done = subprocess.run([str(folder / "lm"), str(folder)], capture_output=True, text=True, check=False)
    finally:
        (folder / "golden.bin").write_bytes(before)
    assert done.returncode == 1 and "FAILED" in done.stdout


def test_what_needs_a_runtime_is_named() -> None:
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sort(x, -1)[0]

    with pytest.raises(UnsupportedModel, match=r"operator.*sort"):
        tvm_doping.compile_c(Sorted(), HERE, example=(torch.randn(3, 5),))


@pytest.mark.parametrize(
    "options", [{"prefix": "Not C"}, {"prefix": "int"}, {"max_steps": 0}, {"weights": "tape"}]
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        tvm_doping.compile_c(Timeless(), HERE, example=(torch.randn(1, 24),), **options)


def test_another_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    made = tvm_doping.compile_c(Timeless(), HERE, example=(torch.randn(1, 24),))
    with pytest.raises(BundleError, match=r"model\.json"):
        made.save(tmp_path)
    assert made.save(tmp_path / "new") == made.save(tmp_path / "new")


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab": 9, "embedding": 16, "hidden": 16, "layers": 1}
    model = LanguageModel(**sizes)
    config = {"task": "language_model", "model": sizes}
    run = checkpoint.save(tmp_path / "tiny-run", config, *models.model_tensors(model))
    place = tmp_path / "made"
    arguments = [
        "compile",
        str(run),
        "--runtime",
        "c",
        "--target",
        HERE,
        "--out",
        str(place),
        "--max-steps",
        "4",
    ]
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--threads", "2"])
    assert stop.value.code == 2 and "1 for a program in C" in capsys.readouterr().err
    _command(*arguments)
    assert "RAM of an instance" in capsys.readouterr().out
    assert "all as PyTorch gave it" in make(place, "check", f"CC={tool('gcc')}")
    _command("inspect", str(place))
    said = capsys.readouterr().out
    assert "tiny_run_init" in said and "largest frame" in said
    _command("inspect", "--json", str(place))
    assert Report.model_validate_json(capsys.readouterr().out) == read_report(place)


def test_the_command_passes_steps_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        """Before anything is compiled."""

    def lower(*_: Any, **options: Any) -> None:
        raise Asked(options["steps"])

    monkeypatch.setattr("tvm_doping.build_c.lower", lower)
    with pytest.raises(Asked, match=r"^35$"):
        cli.main(["compile", "run", "--runtime", "c", "--steps", "35", "--out", str(tmp_path / "made")])


def _command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments])
    assert not stop.value.code


def test_a_gpu_is_refused() -> None:
    with pytest.raises(InvalidInput, match="needs a CPU"):
        tvm_doping.compile_c(Timeless(), "cuda-sm90", example=(torch.randn(1, 24),))
