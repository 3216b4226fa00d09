"""A program's instructions as text that llvm-mca takes: branches without targets, calls and returns without an effect."""

from __future__ import annotations

import re
import subprocess

from tvm_doping.bench.predict.program import Program
from tvm_doping.bench.predict.tools import llvm
from tvm_doping.bench.predict.trace import kernel_range

_LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S.*)$", re.MULTILINE)
_COMMENT = {"x86_64": re.compile(r"\s+(#|<).*$"), "aarch64": re.compile(r"\s+(//|;|<).*$")}


def instructions(program: Program) -> dict[int, str]:
    """Address -> instruction, as llvm-mca takes it, of all kernels."""
    first, last = kernel_range(program)
    command = [
        llvm("objdump"), "-d", "--no-show-raw-insn", f"--start-address={first:#x}", f"--stop-address={last:#x}",
    ]  # fmt: skip
    listing = subprocess.run([*command, str(program.path)], capture_output=True, text=True, check=True).stdout
    return parse(listing, program.architecture)


def parse(listing: str, architecture: str) -> dict[int, str]:
    """The same of what llvm-objdump printed."""
    return {int(m[1], 16): plain(m[2], architecture) for m in _LINE.finditer(listing)}


def plain(instruction: str, architecture: str) -> str:
    """One instruction without comments and symbols; a branch goes to some place near by, which does not matter to its cost."""
    text = _COMMENT[architecture].sub("", instruction)
    name = text.split()[0]
    if architecture == "x86_64":
        if name.startswith(("call", "ret")):
            return "nop"
        return f"{name} 8" if name.startswith("j") else text
    if name in ("bl", "blr", "ret"):
        return "nop"
    if name == "b" or name.startswith("b."):
        return f"{name} #8"
    if name in ("cbz", "cbnz", "tbz", "tbnz"):
        return re.sub(r",\s*#?(0x)?[0-9a-f]+$", ", #8", text)
    return text


def is_conditional(instruction: str, architecture: str) -> bool:
    """Whether it is a branch that may be taken or not."""
    name = instruction.split()[0]
    if architecture == "x86_64":
        return name.startswith("j") and name not in ("jmp", "jmpq")
    return name.startswith("b.") or name in ("cbz", "cbnz", "tbz", "tbnz")
