"""Labelled sentences: ATIS's files, or a small sample of made-up ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from tvm_doping.errors import DataError
from tvm_doping.models.tasks.protocol import SPLITS
from tvm_doping.models.tasks.reading import most_frequent, read_text
from tvm_doping.text import UNKNOWN

_FOLDERS = {"train": ("train",), "valid": ("dev", "valid"), "test": ("test",)}
_NEEDS = "a folder with train/, dev/ and test/, in each a seq.in and a label"

Pairs = list[tuple[list[str], str]]


@dataclass(frozen=True, kw_only=True)
class Sentences:
    """For each split its sentences, token numbers int64 (T,), and label numbers (sentences,); what the numbers mean.

    A label that the training split lacks has the number len(labels): no prediction equals it.
    """

    vocabulary: tuple[str, ...]
    labels: tuple[str, ...]
    texts: dict[str, list[np.ndarray]]
    wanted: dict[str, np.ndarray]

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256("\0".join((*self.vocabulary, "", *self.labels)).encode())
        for split in SPLITS:
            digest.update(b"|".join(text.tobytes() for text in self.texts[split]))
            digest.update(self.wanted[split].tobytes())
        return digest.hexdigest()


def labelled(folder: Path, least: int) -> Sentences:
    """`{train,dev,test}/seq.in`, a sentence a line with words parted by spaces, beside `label`, a label a line.

    The vocabulary is that of the training split's words seen at least `least` times, others are `<unk>`. Raises DataError
    for what is missing, empty, not UTF-8, or of two lengths.
    """
    if not folder.is_dir():
        raise DataError(str(folder), _NEEDS, "no folder there", "Give its path as --data.")
    return _numbered({split: _read(folder, split) for split in SPLITS}, least)


def sample() -> Sentences:
    """A few hundred made-up requests of four kinds, in three splits: enough to see that training works."""
    rows: Pairs = [(text.split(), label) for label, text in _requests()]
    order = np.random.default_rng(0).permutation(len(rows))
    parts = np.split(order, [len(rows) * 6 // 10, len(rows) * 8 // 10])
    return _numbered({s: [rows[i] for i in part] for s, part in zip(SPLITS, parts, strict=True)}, 1)


def _requests() -> Iterator[tuple[str, str]]:
    rooms, times = (
        ("kitchen", "hall", "bedroom", "office"),
        ("six", "half past nine", "noon", "eleven at night"),
    )
    for ask, room in product(
        ("turn on the light in the", "please light up the", "it is too dark in the"), rooms
    ):
        yield "light", f"{ask} {room}"
    for ask, time in product(("wake me at", "set an alarm for", "please ring a bell at"), times):
        yield "alarm", f"{ask} {time}"
    for ask, (room, time) in product(("is it warm in the", "how cold will the"), product(rooms, times)):
        yield "temperature", f"{ask} {room} be at {time}"
    for ask, (room, time) in product(("play music in the", "i want a song for the"), product(rooms, times)):
        yield "music", f"{ask} {room} at {time}"


def _read(folder: Path, split: str) -> Pairs:
    names = _FOLDERS[split]
    place = next((folder / name for name in names if (folder / name).is_dir()), None)
    if place is None:
        raise DataError(f"{split} split", _NEEDS, f"no {' or '.join(names)} in {folder}", "Put it there.")
    texts, labels = (read_text(place / name, split).splitlines() for name in ("seq.in", "label"))
    if len(texts) != len(labels):
        got = f"{len(texts)} and {len(labels)}"
        raise DataError(f"{split} split", "as many lines in seq.in as in label", got, "Correct the files.")
    empty = next((number for number, text in enumerate(texts, 1) if not text.split()), None)
    if empty is not None:
        raise DataError(f"{split} split", "a sentence in every line", f"none in line {empty}", "Remove it.")
    return [(text.split(), label.strip()) for text, label in zip(texts, labels, strict=True)]


def _numbered(rows: dict[str, Pairs], least: int) -> Sentences:
    words = most_frequent((word for text, _ in rows["train"] for word in text), least)
    vocabulary = (*(word for word in words if word != UNKNOWN), UNKNOWN)
    labels = tuple(sorted({label for _, label in rows["train"]}))
    number = {word: i for i, word in enumerate(vocabulary)}
    unknown, label_number = number[UNKNOWN], {label: i for i, label in enumerate(labels)}
    return Sentences(
        vocabulary=vocabulary,
        labels=labels,
        texts={
            split: [np.array([number.get(word, unknown) for word in text], np.int64) for text, _ in found]
            for split, found in rows.items()
        },
        wanted={
            split: np.array([label_number.get(label, len(labels)) for _, label in found], np.int64)
            for split, found in rows.items()
        },
    )
