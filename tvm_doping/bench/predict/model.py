"""Predicted cycles of a program, phase by phase: the larger of computing and reading, and the branches that are guessed wrong.

    time = sum over phases of max(cycles of its instructions / f, bytes of its weights / bandwidth) + misses * penalty / f

Cycles: windows of the instructions that run, in the order in which they run, through llvm-mca. So loops too short to reach a
steady state, sums at their ends, and the overlap of one row with the next cost what they cost on the modelled core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from tvm_doping.bench.predict import mca
from tvm_doping.bench.predict.assembly import instructions, is_conditional
from tvm_doping.bench.predict.devices import Device
from tvm_doping.bench.predict.program import Kernel, Program
from tvm_doping.bench.predict.trace import Trace, trace

# Instructions of a window, long beside what a core holds in flight (512 at most), and the windows of a phase of more, as many as
# its share of all instructions is worth.
_WINDOW, _MOST_WINDOWS = 1500, 6
# A phase of fewer instructions than this share is taken to run like its neighbours in the same program.
_SHARE = 0.002
# Rounds of a loop that a predictor counts: an exit after as many rounds as the last time is foreseen up to here.
_COUNTED = 32


@dataclass(frozen=True, kw_only=True)
class PhaseCost:
    """One phase, over all its runs in a round.

    instructions executed; cycles by llvm-mca; misses: mispredicted branches; bytes: of weights, from `level`;
    us: what the phase takes, and by what: "computing" or "reading".
    """

    kernel: str
    label: str
    runs: int
    instructions: int
    cycles: float
    misses: int
    bytes: int
    level: str
    us: float = 0.0
    by: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def predict(
    program: Program, kernels: Sequence[Kernel], device: Device, *, steps: int = 1
) -> list[PhaseCost]:
    """The cost of each phase that runs in a round of the marked program; steps: T of a round, which is the same T times."""
    code = instructions(program)
    ran = trace(program, code)
    lengths = {start: len(block) for start, block in ran.blocks.items()}
    missed = mispredicted(ran, code, program.architecture, steps * device.learnt)
    size = {(k.name, name): k.arguments[name].nbytes for k in kernels for name in k.arguments}
    weights = {(k.name, name) for k in kernels for name in k.weights}
    level = device.level(sum(kernel.weight_bytes for kernel in kernels))
    walks = _walks(program, ran, size, weights)
    numbers = np.unique(ran.phase[ran.phase >= 0])
    per_block = np.array([lengths[s] for s in ran.start.tolist()], "int64")
    totals = {int(p): int(per_block[ran.phase == p].sum()) for p in numbers}
    everything = sum(totals.values())
    cycles = _cycles(ran, per_block, totals, everything, code, device, program.architecture)
    costs = []
    for p, count in totals.items():
        phase, read = program.phases[p], walks.get(p, 0.0)
        cost = PhaseCost(
            kernel=phase.kernel,
            label=phase.label,
            runs=_runs(ran.phase, p),
            instructions=count,
            cycles=round(cycles[p], 1),
            misses=int(missed.get(p, 0)),
            bytes=round(read),
            level=level,
        )
        computing, reading = _parts(cost.to_dict(), device)
        by = "reading" if reading > computing else "computing"
        costs.append(replace(cost, us=max(computing, reading), by=by))
    return costs


def time(phase: Mapping[str, Any], device: Device) -> float:
    """Microseconds of a phase (as plain data) on a device."""
    return max(_parts(phase, device))


def _parts(phase: Mapping[str, Any], device: Device) -> tuple[float, float]:
    """(computing, reading)."""
    cycles = phase["cycles"] + phase["misses"] * device.penalty
    return cycles / device.ghz / 1e3, phase["bytes"] / device.bandwidth(phase["level"]) / 1e3


def mispredicted(ran: Trace, code: Mapping[int, str], architecture: str, learnt: int) -> dict[int, int]:
    """Phase -> branches guessed wrong, by a predictor that expects each branch to go as it mostly does, but for the end of a run as
    long as the one before it, if that was short enough to count. It has learnt a branch by heart that goes the other way at
    most `learnt` times: each step repeats the last one."""
    last = {start: block[-1] for start, block in ran.blocks.items() if block[-1] in code}
    fallthrough = _following(code)
    following = np.append(ran.start[1:], -1)
    order = np.argsort(ran.start, kind="stable")
    starts, first = np.unique(ran.start[order], return_index=True)
    misses: dict[int, int] = {}
    for start, here in zip(starts.tolist(), np.split(order, first[1:]), strict=True):
        end = last.get(start)
        if end is None or not is_conditional(code[end], architecture):
            continue
        taken = following[here] != fallthrough.get(end, -1)
        rare = taken if taken.mean() < 0.5 else ~taken
        at = np.flatnonzero(rare)
        if len(at) <= learnt:
            continue
        run = np.diff(at, prepend=-1)
        before = np.concatenate([[-1], run[:-1]])
        wrong = here[at[(run != before) | (run > _COUNTED)]]
        for p, count in zip(*np.unique(ran.phase[wrong], return_counts=True), strict=True):
            misses[int(p)] = misses.get(int(p), 0) + int(count)
    return misses


def _following(code: Mapping[int, str]) -> dict[int, int]:
    addresses = sorted(code)
    return dict(pairwise(addresses))


def _cycles(
    ran: Trace,
    per_block: np.ndarray,
    totals: dict[int, int],
    everything: int,
    code: Mapping[int, str],
    device: Device,
    architecture: str,
) -> dict[int, float]:
    """Cycles of each phase: of windows of it, times its instructions over theirs."""
    sequences: list[list[str]] = []
    owners: list[int] = []
    for p, count in totals.items():
        if count < _SHARE * everything:
            continue
        which = np.flatnonzero(ran.phase == p)
        ends = np.cumsum(per_block[which])
        windows = 1 if count <= _WINDOW else int(np.clip(10 * count / everything, 2, _MOST_WINDOWS))
        for begin in np.linspace(0, max(0, count - _WINDOW), windows):
            blocks = which[np.searchsorted(ends, begin, side="right") :]
            sequence: list[str] = []
            for start in ran.start[blocks[:_WINDOW]].tolist():
                sequence += [code[address] for address in ran.blocks[start]]
                if len(sequence) >= _WINDOW:
                    break
            sequences.append(sequence)
            owners.append(p)
    measured = mca.cycles(sequences, device.mca, architecture)
    spent: dict[int, float] = {}
    length: dict[int, int] = {}
    for p, sequence, cycles in zip(owners, sequences, measured, strict=True):
        spent[p] = spent.get(p, 0.0) + cycles
        length[p] = length.get(p, 0) + len(sequence)
    each = sum(spent.values()) / max(1, sum(length.values()))
    return {p: count * (spent[p] / length[p] if p in spent else each) for p, count in totals.items()}


def _walks(
    program: Program, ran: Trace, size: Mapping[tuple[str, str], int], weights: set[tuple[str, str]]
) -> dict[int, float]:
    """Phase -> bytes of weights that it reads in all its runs. Phases in a row that read the same array, as whole register tiles
    and the rest, share one walk through it; each takes as much of it as it has of their instructions."""
    counts = {int(p): int((ran.phase == p).sum()) for p in np.unique(ran.phase[ran.phase >= 0])}
    found: dict[int, float] = {}
    for key in weights:
        readers = [
            p
            for p in sorted(counts)
            if program.phases[p].kernel == key[0] and key[1] in program.phases[p].reads
        ]
        groups: list[list[int]] = []
        for p in readers:
            if groups and p - groups[-1][-1] == 1:
                groups[-1].append(p)
            else:
                groups.append([p])
        for group in groups:
            walks = max(_runs(ran.phase, p) for p in group)
            blocks = sum(counts[p] for p in group)
            for p in group:
                found[p] = found.get(p, 0.0) + walks * size[key] * counts[p] / blocks
    return found


def _runs(phase: np.ndarray, p: int) -> int:
    """How often a phase is entered."""
    inside = phase == p
    return int((inside & ~np.concatenate([[False], inside[:-1]])).sum())
