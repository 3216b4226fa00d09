"""Text for language models: Penn Treebank files, or the help topics that every Python installation
carries."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvm_doping.errors import DataError
from tvm_doping.models.tasks.protocol import SPLITS
from tvm_doping.models.tasks.reading import most_frequent, read_text
from tvm_doping.text import UNKNOWN, Tokens, split


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Three streams of token numbers (int64), the vocabulary they index, and how text became tokens."""

    tokens: Tokens
    vocabulary: tuple[str, ...]
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    @property
    def sha256(self) -> str:
        """Of vocabulary and streams: the same text."""
        digest = hashlib.sha256("\0".join(self.vocabulary).encode())
        for stream in (self.train, self.valid, self.test):
            digest.update(stream.tobytes())
        return digest.hexdigest()


def ptb(folder: str | Path) -> Corpus:
    """`ptb.{train,valid,test}.txt` (or `{train,valid,test}.txt`): a sentence a line, words parted by spaces.

    Each line ends in `<eos>`; the vocabulary is that of the training split, most frequent first, and other
    words are `<unk>`. Raises DataError for a missing folder, file or an empty split.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(
            str(root),
            "a folder with ptb.{train,valid,test}.txt",
            "no folder there",
            "Give its path as --data.",
        )
    texts = {}
    for name in SPLITS:
        names = (f"ptb.{name}.txt", f"{name}.txt")
        path = next((root / file for file in names if (root / file).is_file()), None)
        if path is None:
            raise DataError(f"{name} split", " or ".join(names), f"neither in {root}", "Put the file there.")
        text = read_text(path, name)
        texts[name] = split(text if text.endswith("\n") else f"{text}\n", "words")
    return _corpus(texts, "words", least=1)


def pydoc_topics(level: str = "word", least: int = 3) -> Corpus:
    """The texts of `pydoc_data.topics`: real English of about 100,000 words, and offline everywhere.

    The topics, in order of their names, are parted 18 : 1 : 1 in rounds of twenty into the splits. Words are
    runs of letters or digits, lower-cased, and single other signs; those seen less than `least` times are
    `<unk>`. With level "char" the tokens are characters.
    """
    from pydoc_data.topics import topics

    tokens: Tokens = "characters" if level == "char" else "pieces"
    texts: dict[str, list[str]] = {name: [] for name in SPLITS}
    for number, topic in enumerate(sorted(topics)):
        texts[{9: "valid", 19: "test"}.get(number % 20, "train")] += split(topics[topic], tokens)
    return _corpus(texts, tokens, least=least)


def _corpus(texts: dict[str, list[str]], tokens: Tokens, least: int) -> Corpus:
    words = most_frequent(texts["train"], least)
    if UNKNOWN not in words:
        words.append(UNKNOWN)
    number = {word: index for index, word in enumerate(words)}
    unknown = number[UNKNOWN]
    streams = {
        name: np.fromiter((number.get(token, unknown) for token in found), np.int64, len(found))
        for name, found in texts.items()
    }
    return Corpus(tokens=tokens, vocabulary=tuple(words), **streams)
