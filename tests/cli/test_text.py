"""Text as token indices, and the numbers that the verbs print."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_doping.cli.show import ratio, settings, shape, size
from tvm_doping.errors import InvalidInput
from tvm_doping.cli.text import decode, encode

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


def test_sizes_read_well():
    counts = (0, 830, 1024, 1331, 27 * 2**20, 5 * 2**40)
    assert [size(n) for n in counts] == ["0 B", "830 B", "1.0 KiB", "1.3 KiB", "27.0 MiB", "5120.0 GiB"]
    assert (ratio(10, 4), ratio(10, 0)) == ("2.5x", "-")
    assert (shape(("T", "N", 8)), shape(())) == ("T x N x 8", "scalar")


def test_settings_are_json_or_text():
    found = settings(["a=1", "b=[1, 2]", "c=x=y", "d=", "e=true"], "--set")
    assert found == {"a": 1, "b": [1, 2], "c": "x=y", "d": "", "e": True}
    for bad in ("a", "=1", " =1"):
        with pytest.raises(InvalidInput, match="--set"):
            settings([bad], "--set")
