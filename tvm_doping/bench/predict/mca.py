"""Cycles of sequences of instructions on a core, by llvm-mca's model of it: its units, queues, latencies, and width."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

from tvm_doping.bench.predict.tools import llvm
from tvm_doping.errors import BenchError

_TRIPLES = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
# A disassembler writes the address itself, of a program far beyond what this instruction reaches from where mca puts it.
_NEAR = re.compile(r"^(\s*adr\s+\w+,).*")
_REGION = re.compile(r"^\[\d+\] Code Region - (\S+)$", re.MULTILINE)
_CYCLES = re.compile(r"^Total Cycles:\s+(\d+)$", re.MULTILINE)


def cycles(sequences: Sequence[Sequence[str]], cpu: str, architecture: str) -> list[int]:
    """Cycles from the first instruction of each sequence to the last, run once, every load a hit in the L1.

    Raises BenchError for a CPU or an instruction that llvm-mca does not know.
    """
    text = "".join(
        f"# LLVM-MCA-BEGIN s{i}\n"
        + "\n".join(_NEAR.sub(r"\1 #0", line) for line in sequence)
        + f"\n# LLVM-MCA-END s{i}\n"
        for i, sequence in enumerate(sequences)
    )
    command = [llvm("mca"), f"-mtriple={_TRIPLES[architecture]}", f"-mcpu={cpu}", "-iterations=1"]
    command += ["-all-views=false", "-summary-view"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    found = parse(done.stdout)
    if done.returncode or len(found) != len(sequences):
        raise BenchError(
            f"the instructions for {cpu}",
            "to be known to llvm-mca",
            done.stderr.strip()[:400] or f"{len(found)} of {len(sequences)} results",
            "A newer LLVM may know them: sudo apt-get install llvm-19",
        )
    return found


def parse(output: str) -> list[int]:
    """The cycles in what llvm-mca printed, in the order of the regions' names s0, s1, ..."""
    names = [int(name[1:]) for name in _REGION.findall(output)]
    counts = [int(count) for count in _CYCLES.findall(output)]
    if not names and len(counts) == 1:
        return counts
    return [count for _, count in sorted(zip(names, counts, strict=False))]
