"""Whether a layer is worth sharing between the threads of a session."""

from __future__ import annotations

# A step of a layer waits at so many barriers at most (input, bias, two products of two parts each, cell, output), and each takes
# so many cycles: a cache line goes to the other core and comes back (315 ns on two cores of an AMD Zen 3 server).
_BARRIERS, _BARRIER = 14, 1000.0
# What threads save must be this many times what the barriers take: predicted cycles are no better than that, and rows that
# two cores add to wander between their caches.
_MARGIN = 3.0


def worth_sharing(cycles: float, threads: int) -> bool:
    """Whether a step of that many predicted cycles is faster on so many threads."""
    return cycles * (1 - 1 / threads) > _MARGIN * _BARRIERS * _BARRIER


def window(rows: int) -> int:
    """Rows that a format may sort among each other: eighths of them, so that 2, 4 or 8 threads take whole windows."""
    return -(-rows // (8 * 16)) * 16
