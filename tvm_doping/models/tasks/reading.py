"""What all tasks do with sentences: read them from a file, count their words, put those of one length together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Sized
from pathlib import Path

from tvm_doping.errors import DataError


def read_text(path: Path, split: str) -> str:
    """The text of a split's file, UTF-8, without the byte order mark that some programs begin it with.

    Raises DataError for a file that is missing, unreadable, or blank.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{split} split", f"a file {path}", "none there", "Put it there.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(str(path), "readable UTF-8 text", str(error), "Convert the file.") from error
    if not text.strip():
        raise DataError(f"{split} split", "some text", f"an empty {path}", "Fill the file.")
    return text


def most_frequent(words: Iterable[str], least: int) -> list[str]:
    """The words seen at least `least` times, by count, then alphabetically: the same order on every machine."""
    counts = Counter(words)
    kept = (word for word, count in counts.items() if count >= least)
    return sorted(kept, key=lambda word: (-counts[word], word))


def by_length(sentences: Sequence[Sized]) -> dict[int, list[int]]:
    """Which sentences have each length, shortest first."""
    groups: dict[int, list[int]] = {}
    for index, sentence in enumerate(sentences):
        groups.setdefault(len(sentence), []).append(index)
    return dict(sorted(groups.items()))
