"""What a program executes: an emulator runs it once and tells, block by block, which instructions it went through.

How often a loop runs follows from the packed data and the shapes alone; the emulator counts it exactly, however LLVM unrolled,
split or reordered the loops. Its own speed means nothing and is not used.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tvm_doping.bench.predict.marks import MARK
from tvm_doping.bench.predict.program import Program
from tvm_doping.errors import BenchError

# QEMU's log: a translated block is listed once, "IN:" and a line an instruction; then a line "Trace" each time that it runs.
_LISTED = re.compile(rb"^IN:[^\n]*\n((?:0x[^\n]*\n)+)", re.MULTILINE)
_PIECE = 1 << 24  # bytes
_ADDRESS = re.compile(rb"^(0x[0-9a-f]+):", re.MULTILINE)
_RAN = re.compile(rb"^Trace \d+: \S+ \[[0-9a-f]+/([0-9a-f]{16})/", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Blocks in the order in which they ran.

    start  (n,) the address of each block's first instruction; phase: (n,) the number of its mark, -1 before the first.
    blocks start -> addresses of the block's instructions.
    """

    start: np.ndarray
    phase: np.ndarray
    blocks: dict[int, tuple[int, ...]]


def trace(program: Program, code: Mapping[int, str]) -> Trace:
    """Run a round of the marked program under QEMU; code: address -> instruction. BenchError where there is no QEMU for it."""
    symbols = symbols_of(program)
    marks = {
        address: int(name.removeprefix(MARK)) for name, address in symbols.items() if name.startswith(MARK)
    }
    first, last = _kernels(symbols)
    ranges = f"{min(marks):#x}..{max(marks):#x},{first:#x}..{last - 1:#x}"
    parts: list[np.ndarray] = []
    listed: list[list[int]] = []
    for log in _emulated(program, ranges):
        parts.append(parse(log, listed))
    starts = np.concatenate(parts)
    is_mark = np.isin(starts, list(marks))
    # a block belongs to the mark before it
    at = np.maximum.accumulate(np.where(is_mark, np.arange(len(starts)), -1))
    numbers = np.array([marks.get(int(s), -1) for s in starts[is_mark]], "int64")
    phase = np.full(len(starts), -1, "int64")
    which = np.cumsum(is_mark) - 1
    phase[at >= 0] = numbers[which[at >= 0]]
    kept = ~is_mark & (starts >= first) & (starts < last)
    if not kept.any():
        raise BenchError("the trace of a program", "blocks of its kernels", "none", "Report this as a bug.")
    return Trace(start=starts[kept], phase=phase[kept], blocks=_blocks(listed, code))


def _blocks(listed: Sequence[Sequence[int]], code: Mapping[int, str]) -> dict[int, tuple[int, ...]]:
    """QEMU's own disassembler takes bytes that it does not know one by one: only where a block begins and ends counts."""
    addresses = np.array(sorted(code))
    bounds = {block[0]: np.searchsorted(addresses, (block[0], block[-1] + 1)) for block in listed}
    return {start: tuple(addresses[i:j].tolist()) for start, (i, j) in bounds.items() if i < j}


def symbols_of(program: Program) -> dict[str, int]:
    """Name -> address of the program's functions."""
    listing = subprocess.run(["nm", str(program.path)], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    return {row[2]: int(row[0], 16) for row in rows if len(row) == 3 and row[1] in "tTwW"}


def kernel_range(program: Program) -> tuple[int, int]:
    """The addresses from the first kernel's code to the end of the last one's."""
    return _kernels(symbols_of(program))


def _kernels(symbols: dict[str, int]) -> tuple[int, int]:
    # The linker puts the runner's object first, the kernels' behind it, then libraries, which begin with the first name that
    # neither of these defines.
    ours = [a for name, a in symbols.items() if name.startswith("__tvm_ffi_")]
    first = min(ours)
    behind = sorted(a for name, a in symbols.items() if a > max(ours) and not _is_kernel(name))
    return first, behind[0]


def _is_kernel(name: str) -> bool:
    return name.startswith("__tvm_") or name.endswith("_compute_")


def parse(log: bytes, listed: list[list[int]]) -> np.ndarray:
    """The starts of the blocks that ran, in whole lines of QEMU's log; `listed` gets the addresses of each block that it lists."""
    listed += [[int(a, 16) for a in _ADDRESS.findall(block)] for block in _LISTED.findall(log)]
    return np.frombuffer(bytes.fromhex(b"".join(_RAN.findall(log)).decode()), ">u8").astype("int64")


def _emulated(program: Program, ranges: str) -> Iterator[bytes]:
    """The emulator's log, in pieces that end between two blocks."""
    names = [f"qemu-{program.architecture}-static", f"qemu-{program.architecture}"]
    emulator = next((name for name in names if shutil.which(name)), None)
    if emulator is None:
        raise BenchError(
            "a prediction",
            f"the emulator {names[0]}, which counts how often each loop runs",
            "none on the PATH",
            "Install it: sudo apt-get install qemu-user-static",
        )
    options = ["-cpu", "max", "-d", "exec,nochain,in_asm", "-dfilter", ranges]
    command = [emulator, *options, str(program.path), str(program.data)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        left = b""
        while piece := process.stderr.read(_PIECE):
            whole, cut, left = (left + piece).rpartition(b"\nTrace ")
            if cut:
                yield whole + b"\n"
                left = b"Trace " + left
        yield left
    if process.returncode:
        raise BenchError(
            "a program under emulation",
            "to run",
            f"exit status {process.returncode}",
            "Report this as a bug.",
        )
