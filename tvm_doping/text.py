"""Text as token indices and back: the same when a model is trained and when its bundle is run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from tvm_doping.errors import InvalidInput

UNKNOWN, END = "<unk>", "<eos>"
Tokens = Literal["words", "pieces", "characters"]
_PIECE = re.compile(r"[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]")


def split(text: str, tokens: Tokens) -> list[str]:
    """The tokens of a text.

    words       what spaces part, as in the Penn Treebank files; each line ends in "<eos>";
    pieces      lower-cased runs of letters, runs of digits, and single other signs; each line that has any
                ends in "<eos>";
    characters  every character as it is.
    """
    if tokens == "characters":
        return list(text)
    found: list[str] = []
    for line in text.splitlines(keepends=True):
        parts = line.split() if tokens == "words" else _PIECE.findall(line.lower())
        found += parts
        if line[-1:] in "\r\n" and (parts or tokens == "words"):
            found.append(END)
    return found


def encode(text: str, vocabulary: Sequence[str], tokens: str | None) -> np.ndarray:
    """Indices (T,) int64 of a text's tokens in the vocabulary; tokens that it lacks become "<unk>".

    A line end that the vocabulary has no "<eos>" for is left out. Raises InvalidInput where a token is
    unknown and the vocabulary has no "<unk>", for an empty text, and for a model that is not one of language.
    """
    if tokens not in get_args(Tokens) or not vocabulary:
        raise InvalidInput(
            "text", "a language model with a vocabulary", "a model of numbers", "Give .npy or .npz."
        )
    index = {token: i for i, token in enumerate(vocabulary)}
    found = [token for token in split(text, tokens) if token != END or END in index]  # type: ignore[arg-type]
    if not found:
        raise InvalidInput("text", "at least one token", "none", "Give some text.")
    strange = next((token for token in found if token not in index), None)
    if strange is not None and UNKNOWN not in index:
        need = f"tokens of the model's vocabulary ({len(vocabulary):,}), which has no {UNKNOWN}"
        raise InvalidInput("text", need, repr(strange), "Leave it out.")
    return np.array([index.get(token, index.get(UNKNOWN, 0)) for token in found], np.int64)


def decode(token: int, vocabulary: Sequence[str]) -> str:
    """The token of an index."""
    return vocabulary[token]
