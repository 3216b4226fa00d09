"""Timing work on a GPU fairly: CUDA events around several calls, interleaved, in a fresh random order each round."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from tvm_doping.bench.measure import summarise

_SAMPLE = 2000.0  # microseconds that a sample should last: long beside the events' resolution of 0.5 us
_MOST_REPEATS, _LEAST_ROUNDS = 200, 7
_WARM = 3  # untimed calls before each sample: the L2 then holds what a stream in use has there


class Clock:
    """CUDA events of the current stream; cuda is torch.cuda."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._start, self._end = (cuda.Event(enable_timing=True) for _ in range(2))

    def us(self, call: Callable[[], object], repeats: int) -> float:
        """Microseconds a call on the GPU, the mean of `repeats` in a row; calls that launch slower than it works wait for that."""
        for _ in range(_WARM):
            call()
        self._start.record()
        for _ in range(repeats):
            call()
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) * 1e3 / repeats

    def wall(self, call: Callable[[], object]) -> float:
        """Microseconds from one call until its result is there, as a user waits who takes one at a time."""
        self._cuda.synchronize()
        start = time.perf_counter()
        call()
        self._cuda.synchronize()
        return (time.perf_counter() - start) * 1e6


def interleave(
    calls: Mapping[str, Callable[[], object]], clock: Clock, *, seconds: float, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Of each call {"us": by events, "wall_us": alone}, summaries of a sample a round, for about `seconds` (at least 7 rounds)."""
    repeats = {}
    for name, call in calls.items():
        clock.us(call, 1)  # what the first call does once
        repeats[name] = max(1, min(_MOST_REPEATS, round(_SAMPLE / max(clock.us(call, 3), 1e-3))))
    samples: dict[str, dict[str, list[float]]] = {name: {"us": [], "wall_us": []} for name in calls}
    names, order = list(calls), random.Random(seed)
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < _LEAST_ROUNDS or time.perf_counter() < end:
        order.shuffle(names)
        for name in names:
            samples[name]["us"].append(clock.us(calls[name], repeats[name]))
            samples[name]["wall_us"].append(clock.wall(calls[name]))
        rounds += 1
    return {name: {kind: summarise(values) for kind, values in of.items()} for name, of in samples.items()}
