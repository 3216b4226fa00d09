"""Where buffers lie in one block of memory, known before the program runs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

_Key = TypeVar("_Key", bound=Hashable)

ALIGNMENT = 64  # of each buffer: what vector loads and stores of the widest target ask


@dataclass(frozen=True)
class Life:
    """A buffer's size in bytes, and the first and last step of the program at which it must keep its contents."""

    bytes: int
    first: int
    last: int


def arrange(lives: Mapping[_Key, Life]) -> tuple[dict[_Key, int], int]:
    """(offset of each buffer, bytes in all): buffers that live at the same time do not overlap.

    Greedy by size: the largest first, each at the lowest place that is free for its whole life (Pisarchyk and Lee 2020,
    arXiv 2001.03288), which is within a few per cent of the lower bound for graphs such as these. Equal sizes in the given order.
    """
    placed: dict[_Key, int] = {}
    for key in sorted(lives, key=lambda key: -lives[key].bytes):
        life, at = lives[key], 0
        others = sorted(
            (offset, offset + aligned(lives[other].bytes))
            for other, offset in placed.items()
            if lives[other].first <= life.last and life.first <= lives[other].last
        )
        for begin, end in others:
            if at + aligned(life.bytes) <= begin:
                break
            at = max(at, end)
        placed[key] = at
    return placed, max((placed[key] + aligned(life.bytes) for key, life in lives.items()), default=0)


def in_a_row(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """(offset of each, bytes in all) of buffers one after the other."""
    offsets, end = {}, 0
    for key, size in sizes.items():
        offsets[key] = end
        end += aligned(size)
    return offsets, end


def aligned(size: int) -> int:
    """The size, rounded up to whole units of alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT
