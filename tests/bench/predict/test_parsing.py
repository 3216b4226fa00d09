"""What the tools print, recorded, is read right: disassembly, llvm-mca's summary, the emulator's log."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_doping.bench.predict import mca
from tvm_doping.bench.predict.assembly import is_conditional, parse, plain
from tvm_doping.bench.predict.model import mispredicted
from tvm_doping.bench.predict.trace import Trace
from tvm_doping.bench.predict.trace import parse as parse_log

X86 = """
0000000000401fb0 <__tvm_ffi_layer0>:
  401fb0:      \tpushq\t%rbp
  401fb1:      \tvfmadd231ps\t(%rdi,%rax,4), %ymm1, %ymm0 # ymm0 = (ymm1 * mem) + ymm0
  401fb7:      \tjne\t0x401fb1 <__tvm_ffi_layer0+0x1>
  401fb9:      \tcallq\t0x401af0 <doping_mark_3>
  401fbe:      \tretq
"""
ARM = """
  405824:      \tfmla\tv1.4s, v2.4s, v0.s[1]
  405828:      \tmov\tw2, #0x22               // =34
  40582c:      \tb.lo\t0x405824 <layer0_compute_+0x54>
  405830:      \ttbz\tw1, #0x6, 0x405824 <layer0_compute_+0x54>
  405834:      \tcbnz\tx22, 0x405824 <layer0_compute_+0x54>
  405838:      \tbl\t0x40ee40 <doping_mark_3>
"""
# QEMU cannot read the instruction at 0x40fa18, and goes on with one of nine bytes on a second line.
LOG = b"""----------------
IN: layer0_compute_
0x0040fa10:  48 83 bc 24 e0 00 00 00  cmpq     $0, 0xe0(%rsp)
0x0040fa18:  00
0x0040fa19:  7e 10                    jle      0x40fa2b

Trace 0: 0x7f56d4000100 [0000000000000000/000000000040fa10/1040c0b3/00000200] layer0_compute_
Trace 0: 0x7f56d40002c0 [0000000000000000/0000000000401af0/1040c0b3/00000200]
"""
MCA = """
[0] Code Region - s1

Iterations:        1
Instructions:      1
Total Cycles:      7

[1] Code Region - s0

Total Cycles:      4
"""


def test_x86_instructions_lose_comments_targets_and_calls() -> None:
    assert list(parse(X86, "x86_64").values()) == [
        "pushq\t%rbp",
        "vfmadd231ps\t(%rdi,%rax,4), %ymm1, %ymm0",
        "jne 8",
        "nop",
        "nop",
    ]


def test_arm_instructions_lose_comments_targets_and_calls() -> None:
    assert [text.replace("\t", " ") for text in parse(ARM, "aarch64").values()] == [
        "fmla v1.4s, v2.4s, v0.s[1]",
        "mov w2, #0x22",
        "b.lo #8",
        "tbz w1, #0x6, #8",
        "cbnz x22, #8",
        "nop",
    ]


@pytest.mark.parametrize(
    ("text", "architecture", "expected"),
    [
        ("jne 8", "x86_64", True),
        ("jmp 8", "x86_64", False),
        ("addq %rax, %rbx", "x86_64", False),
        ("b.ne #8", "aarch64", True),
        ("b #8", "aarch64", False),
        ("tbz w1, #6, #8", "aarch64", True),
        ("bic w1, w2, w3", "aarch64", False),
    ],
)
def test_conditional_branches(text: str, architecture: str, expected: bool) -> None:
    assert is_conditional(text, architecture) is expected
    assert plain(text, architecture).split()[0] == text.split()[0]


def test_cycles_are_read_by_the_names_of_regions() -> None:
    assert mca.parse(MCA) == [4, 7]
    assert mca.parse("Iterations: 1\nTotal Cycles:      9\n") == [9]


def test_the_log_gives_blocks_and_the_order_in_which_they_ran() -> None:
    listed: list[list[int]] = []
    assert parse_log(LOG, listed).tolist() == [0x40FA10, 0x401AF0]
    assert listed == [[0x40FA10, 0x40FA18, 0x40FA19]]


def loop(rounds: list[int]) -> tuple[Trace, dict[int, str]]:
    """A trace of a loop at 8, entered from 0 and left to 16, so many rounds each time."""
    code = {0: "nop", 8: "jne 8", 16: "jmp 8"}
    starts = [at for count in rounds for at in (0, *[8] * count, 16)]
    blocks: dict[int, tuple[int, ...]] = {0: (0,), 8: (8,), 16: (16,)}
    return Trace(start=np.array(starts), phase=np.zeros(len(starts), "int64"), blocks=blocks), code


@pytest.mark.parametrize(
    ("rounds", "learnt", "expected"),
    [
        ([5] * 20, 0, 1),  # the first exit only: then as many rounds as the last time
        ([100] * 20, 0, 20),  # too many to count
        ([3, 5] * 10, 0, 20),  # never as many as the last time
        ([3, 5] * 10, 20, 0),  # known by heart
    ],
)
def test_exits_of_loops_are_mispredicted_where_their_rounds_change(
    rounds: list[int], learnt: int, expected: int
) -> None:
    trace, code = loop(rounds)
    assert sum(mispredicted(trace, code, "x86_64", learnt).values()) == expected
