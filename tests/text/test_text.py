"""Text as token indices and back."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_doping.errors import InvalidInput
from tvm_doping.text import decode, encode, split

WORDS = ("<unk>", "the", "cat", "<eos>")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the cat", [1, 2]),
        ("the cat\n", [1, 2, 3]),
        ("the\n\n cat \n", [1, 3, 3, 2, 3]),
        ("a dog", [0, 0]),
        ("the\u2003cat", [1, 2]),
    ],
)
def test_words(text, expected):
    indices = encode(text, WORDS, "words")
    assert indices.dtype == np.int64 and indices.tolist() == expected
    assert [decode(int(i), WORDS) for i in indices] == [WORDS[i] for i in expected]


def test_lines_do_not_end_where_the_vocabulary_has_no_end():
    assert encode("the cat\nthe\n", WORDS[:3], "words").tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat's", ["the", "cat", "'", "s"]),
        ("x=12ab\n", ["x", "=", "12", "ab", "<eos>"]),
        ("one\n\n \ntwo", ["one", "<eos>", "two"]),
        ("", []),
    ],
)
def test_pieces(text, expected):
    assert split(text, "pieces") == expected


def test_characters_are_taken_as_they_are():
    assert encode("ab\n a", ("a", "b", "\n", " "), "characters").tolist() == [0, 1, 2, 3, 0]


@pytest.mark.parametrize(
    ("text", "vocabulary", "tokens"),
    [
        ("x", ("a", "b"), "characters"),
        ("a dog", ("a",), "words"),
        ("", WORDS, "words"),
        ("the", (), "words"),
        ("the", WORDS, None),
    ],
)
def test_what_cannot_be_encoded_is_refused(text, vocabulary, tokens):
    with pytest.raises(InvalidInput, match="text"):
        encode(text, vocabulary, tokens)
