"""Text for language models: Penn Treebank files, or the help topics that every Python installation
carries."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvm_doping.errors import DataError

UNKNOWN, END = "<unk>", "<eos>"
SPLITS = ("train", "valid", "test")
_TOKEN = re.compile(r"[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Three streams of token numbers (int64) and the vocabulary they index."""

    vocabulary: tuple[str, ...]
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


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
    for split in SPLITS:
        names = (f"ptb.{split}.txt", f"{split}.txt")
        path = next((root / name for name in names if (root / name).is_file()), None)
        if path is None:
            raise DataError(f"{split} split", " or ".join(names), f"neither in {root}", "Put the file there.")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (UnicodeDecodeError, OSError) as error:
            raise DataError(str(path), "readable UTF-8 text", str(error), "Convert the file.") from error
        texts[split] = [token for line in lines for token in (*line.split(), END)]
        if not any(line.strip() for line in lines):
            raise DataError(f"{split} split", "at least one sentence", f"an empty {path}", "Fill the file.")
    return _corpus(texts, least=1)


def pydoc_topics(level: str = "word", least: int = 3) -> Corpus:
    """The texts of `pydoc_data.topics`: real English of about 100,000 words, and offline everywhere.

    The topics, in order of their names, are parted 18 : 1 : 1 in rounds of twenty into the splits. Words are
    runs of letters or digits, lower-cased, and single other signs; those seen less than `least` times are
    `<unk>`. With level "char" the tokens are characters.
    """
    from pydoc_data.topics import topics

    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for number, name in enumerate(sorted(topics)):
        split = {9: "valid", 19: "test"}.get(number % 20, "train")
        text = topics[name]
        if level == "char":
            texts[split] += [*text, END]
        else:
            lines = (_TOKEN.findall(line.lower()) for line in text.splitlines())
            texts[split] += [token for line in lines if line for token in (*line, END)]
    return _corpus(texts, least=least)


def _corpus(texts: dict[str, list[str]], least: int) -> Corpus:
    counts = Counter(texts["train"])
    # by count, then alphabetically: the same numbers on every machine
    words = sorted((word for word, count in counts.items() if count >= least), key=lambda w: (-counts[w], w))
    if UNKNOWN not in words:
        words.append(UNKNOWN)
    number = {word: index for index, word in enumerate(words)}
    unknown = number[UNKNOWN]
    streams = {
        split: np.fromiter((number.get(token, unknown) for token in tokens), np.int64, len(tokens))
        for split, tokens in texts.items()
    }
    return Corpus(vocabulary=tuple(words), **streams)
