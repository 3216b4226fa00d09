"""Timing several callables fairly: interleaved, warm, in a fresh random order each round."""

from __future__ import annotations

import gc
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

_SAMPLE = 2e-3  # seconds that one sample should last: long beside the clock's own 50 ns and an interrupt
_MOST_REPEATS = 256
_LEAST_ROUNDS = 7
# Seconds of untimed calls before each sample. One call is not enough: on AMD the L3 takes what leaves the L2, and weights of a
# few MB settle there over some calls (one: 360 us a step at H = 1500, thirty: 245). Every engine gets the same.
_WARM = 10e-3
_LONG = 20e-3  # calls longer than this warm themselves
# Thread pools spin for a while after a call (ONNX Runtime's 40 ms), on cores that the next engine is to use.
_MOST_WAITING = 1.0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Microseconds a call: median, 20th and 80th percentile, and how many samples they are of."""

    median: float
    p20: float
    p80: float
    samples: int


def interleave(
    calls: Mapping[str, Callable[[], object]], *, seconds: float, seed: int = 0
) -> dict[str, list[float]]:
    """Microseconds a call of each, one sample a round, for about `seconds` (at least 7 rounds).

    Each turn begins when the threads of the one before have stopped to spin, with 10 ms of untimed calls (at least one): taking
    turns empties the caches, which a stream in use has warm. A sample is the mean of as many calls as fill 2 ms. Garbage is not
    collected meanwhile.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names, rng = list(calls), np.random.default_rng(seed)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        end, rounds = time.perf_counter() + seconds, 0
        while rounds < _LEAST_ROUNDS or time.perf_counter() < end:
            for at in rng.permutation(len(names)):
                name = names[at]
                _settle()
                samples[name].append(_sample(calls[name], repeats[name]))
            rounds += 1
    finally:
        if collecting:
            gc.enable()
    return samples


def summarise(samples: list[float]) -> dict[str, float]:
    """The Summary of some samples, as plain numbers."""
    p20, median, p80 = (float(value) for value in np.percentile(samples, (20, 50, 80)))
    return asdict(Summary(median=median, p20=p20, p80=p80, samples=len(samples)))


def _repeats(call: Callable[[], object]) -> int:
    times = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(_MOST_REPEATS, max(1, math.ceil(_SAMPLE / max(min(times), 1e-9))))


def _settle() -> None:
    """Wait until no other thread of this process runs, a second at most."""
    end = time.perf_counter() + _MOST_WAITING
    while _others_run() and time.perf_counter() < end:
        time.sleep(1e-3)


def _others_run() -> bool:
    """Whether a thread beside the calling one is running or wants to; False where the system does not tell (not Linux)."""
    for stat in Path("/proc/self/task").glob("*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # the thread has ended
            continue
        if int(stat.parent.name) != threading.get_native_id() and text.rpartition(")")[2].split()[0] == "R":
            return True
    return False


def _sample(call: Callable[[], object], repeats: int) -> float:
    begin = time.perf_counter()
    call()
    first = time.perf_counter() - begin
    if first >= _LONG:
        return first * 1e6
    while time.perf_counter() - begin < _WARM:
        call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats * 1e6


def tokens_a_second(steps: int, batch: int, us: float) -> float:
    """Of calls of `us` microseconds, each `steps` tokens of `batch` streams."""
    return 1e6 * steps * batch / us
