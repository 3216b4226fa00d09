"""The texts: Penn Treebank's form, and the topics that Python carries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tvm_doping.errors import DataError
from tvm_doping.models.tasks.language_model import columns, segments
from tvm_doping.models.tasks.text import ptb, pydoc_topics
from tvm_doping.text import END, UNKNOWN


def test_ptb(tmp_path: Path) -> None:
    (tmp_path / "ptb.train.txt").write_text(" b a a \n a <unk> \n")
    (tmp_path / "valid.txt").write_text("a c\n")
    (tmp_path / "ptb.test.txt").write_text("b\n")
    corpus = ptb(tmp_path)
    assert corpus.vocabulary == ("a", END, UNKNOWN, "b")
    assert corpus.train.tolist() == [3, 0, 0, 1, 0, 2, 1] and corpus.train.dtype == np.int64
    assert corpus.valid.tolist() == [0, 2, 1] and corpus.test.tolist() == [3, 1]


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        ptb(tmp_path / "absent")
    (tmp_path / "ptb.train.txt").write_text("a\n")
    with pytest.raises(DataError, match="valid split"):
        ptb(tmp_path)
    (tmp_path / "ptb.valid.txt").write_text(" \n\n")
    with pytest.raises(DataError, match="empty"):
        ptb(tmp_path)
    (tmp_path / "ptb.valid.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="UTF-8"):
        ptb(tmp_path)


@pytest.mark.parametrize(("level", "least"), [("word", 3), ("char", 1)])
def test_the_topics(level: str, least: int) -> None:
    corpus = pydoc_topics(level, least)
    assert len(corpus.train) > 80_000
    for split in (corpus.valid, corpus.test):
        assert len(split) > 400 and split.max() < len(corpus.vocabulary) and split.min() >= 0
        assert np.mean(split == corpus.vocabulary.index(UNKNOWN)) < 0.2
    counts = np.bincount(corpus.train, minlength=len(corpus.vocabulary))
    kept = [count for word, count in zip(corpus.vocabulary, counts, strict=True) if word != UNKNOWN]
    assert min(kept) >= least and kept == sorted(kept, reverse=True)


def test_columns_and_segments_keep_the_order() -> None:
    data = columns(np.arange(23), 2, "train")
    assert data.tolist() == [[i, i + 11] for i in range(11)]
    pairs = list(segments(data, 4, whole=False))
    assert [len(tokens) for tokens, _ in pairs] == [4, 4, 2]
    assert torch.equal(torch.cat([tokens for tokens, _ in pairs]), data[:-1])
    assert torch.equal(torch.cat([targets for _, targets in pairs]), data[1:])
    assert [len(tokens) for tokens, _ in segments(data, 4, whole=True)] == [4, 4]
    with pytest.raises(DataError, match="at least 24"):
        columns(np.arange(23), 12, "valid")
