"""Parallel text for translation: files of sentence pairs, and a small sample that needs none."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tvm_doping.errors import DataError
from tvm_doping.models.tasks.reading import by_length, read_text
from tvm_doping.models.tasks.sample_pairs import PAIRS
from tvm_doping.subwords import END, START, Subwords

IGNORED = -100  # a target that no loss counts, as PyTorch's cross entropy has it
# The names of each split's files, without the language.
SPLITS = {
    "train": ("train",),
    "valid": ("val", "valid", "dev"),
    "test": ("test_2016_flickr", "test2016", "test"),
}
Batch = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The sentences of one split, as text and as subwords."""

    texts: tuple[tuple[str, str], ...]
    source: tuple[tuple[int, ...], ...]
    target: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class ParallelCorpus:
    """Three splits, and the subwords of both languages, learned from the training split alone."""

    source: Subwords
    target: Subwords
    train: Pairs
    valid: Pairs
    test: Pairs

    @property
    def sha256(self) -> str:
        """Of texts and subwords: the same data."""
        digest = hashlib.sha256((self.source.to_json() + self.target.to_json()).encode())
        for split in (self.train, self.valid, self.test):
            digest.update(repr(split.texts).encode())
        return digest.hexdigest()


def parallel_text(
    folder: str | Path, source: str = "en", target: str = "de", vocab: int = 4000
) -> ParallelCorpus:
    """`train.SOURCE` and `train.TARGET`, a sentence a line, and the same of `val` and `test_2016_flickr` (Multi30k's names;
    `valid`, `dev` and `test` do too). vocab: the most subwords of each language.

    Raises DataError for a missing folder or file, an empty split, an empty sentence to train on, and files of different lengths.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(
            str(root),
            f"a folder with train.{source}, train.{target}, ...",
            "no folder there",
            "Give its path as --data.",
        )
    texts = {}
    for split, names in SPLITS.items():
        name = next((n for n in names if (root / f"{n}.{source}").is_file()), names[0])
        sides = [_lines(root / f"{name}.{language}", split) for language in (source, target)]
        if len(sides[0]) != len(sides[1]):
            got = f"{len(sides[0])} in {name}.{source}, {len(sides[1])} in {name}.{target}"
            raise DataError(f"{split} split", "as many lines in both languages", got, "Align the files.")
        texts[split] = [(a, b) for a, b in zip(*sides, strict=True) if a and b]
    return _corpus(texts, vocab)


def sample() -> ParallelCorpus:
    """A few dozen English sentences and their German: enough to see that training and compiling work, not to translate."""
    texts: dict[str, list[tuple[str, str]]] = {"train": [], "valid": [], "test": []}
    for number, pair in enumerate(PAIRS):
        texts[{4: "valid", 9: "test"}.get(number % 10, "train")].append(pair)
    return _corpus(texts, 150)


def batches(
    pairs: Pairs, size: int, seed: int | tuple[int, ...] | None = None, multiple: int = 1
) -> list[Batch]:
    """(source (S, N), target with its start (T, N), target with its end (T, N)), N at most `size`, int64.

    All sources of a batch have the same length; shorter targets end in IGNORED. With a seed, which sentences meet in a batch and
    the order of the batches are drawn from it; without, they stand in order of length. N is a multiple of `multiple`: of each
    length, the sentences that are too many are left out.
    """
    random = np.random.default_rng(seed)
    order = np.arange(len(pairs.source)) if seed is None else random.permutation(len(pairs.source))
    found = []
    for group in by_length([pairs.source[index] for index in order]).values():
        group = group[: len(group) // multiple * multiple]
        # targets of like length together: less of a batch is padding
        rows = sorted((int(order[index]) for index in group), key=lambda row: len(pairs.target[row]))
        found += [rows[begin : begin + size] for begin in range(0, len(rows), size)]
    if seed is not None:
        found = [found[index] for index in random.permutation(len(found))]
    return [_batch(pairs, rows) for rows in found]


def _batch(pairs: Pairs, rows: list[int]) -> Batch:
    source = torch.tensor([pairs.source[row] for row in rows]).T.contiguous()
    steps = 1 + max(len(pairs.target[row]) for row in rows)
    given = torch.full((steps, len(rows)), END)
    wanted = torch.full((steps, len(rows)), IGNORED)
    for column, row in enumerate(rows):
        target = torch.tensor(pairs.target[row])
        given[0, column] = START
        given[1 : 1 + len(target), column] = target
        wanted[: len(target), column] = target
        wanted[len(target), column] = END
    return source, given, wanted


def _lines(path: Path, split: str) -> list[str]:
    return [" ".join(line.split()) for line in read_text(path, split).splitlines()]


def _corpus(texts: dict[str, list[tuple[str, str]]], vocab: int) -> ParallelCorpus:
    source, target = (Subwords.learn([pair[side] for pair in texts["train"]], vocab) for side in (0, 1))
    splits = {
        name: Pairs(
            texts=tuple(pairs),
            source=tuple(map(tuple, source.encode([pair[0] for pair in pairs]))),
            target=tuple(map(tuple, target.encode([pair[1] for pair in pairs]))),
        )
        for name, pairs in texts.items()
    }
    return ParallelCorpus(source=source, target=target, **splits)
