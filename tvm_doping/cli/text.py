"""Text as token indices and back, for language models: by a vocabulary, nothing learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tvm_doping.errors import InvalidInput

UNKNOWN, END = "<unk>", "<eos>"


def encode(text: str, vocabulary: Sequence[str], tokens: str | None) -> np.ndarray:
    """Indices (T,) int64 of a text's words (lines end in "<eos>" where the vocabulary has it) or characters.

    Tokens that the vocabulary lacks become "<unk>". Raises InvalidInput where it has no "<unk>" either, for
    an empty text, and for a model that is not one of language.
    """
    if tokens not in ("words", "characters") or not vocabulary:
        raise InvalidInput(
            "text", "a language model with a vocabulary", "a model of numbers", "Give a .npy or .npz file."
        )
    index = {token: i for i, token in enumerate(vocabulary)}
    if tokens == "characters":
        pieces = list(text)
    else:
        lines = text.splitlines(keepends=True)
        pieces = [
            piece
            for line in lines
            for piece in (*line.split(), *([END] if line.endswith("\n") and END in index else []))
        ]
    if not pieces:
        raise InvalidInput("text", "at least one token", "none", "Give some text.")
    unknown = index.get(UNKNOWN)
    if unknown is None:
        missing = next((piece for piece in pieces if piece not in index), None)
        if missing is not None:
            raise InvalidInput(
                "text",
                f"tokens of the model's vocabulary ({len(vocabulary):,}), which has no {UNKNOWN}",
                repr(missing),
                "Leave it out.",
            )
        unknown = -1
    return np.array([index.get(piece, unknown) for piece in pieces], np.int64)


def decode(token: int, vocabulary: Sequence[str]) -> str:
    """The token of an index."""
    return vocabulary[token]
