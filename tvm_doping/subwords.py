"""Text as subwords and back: byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909), the same in training and in a deployed
translator. Needs the package `tokenizers` (extra `train`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tvm_doping.errors import DopingError, InvalidInput

UNKNOWN, START, END = 0, 1, 2
_SPECIAL = ["<unk>", "<s>", "</s>"]


class Subwords:
    """A vocabulary of subwords: words are parted by spaces, and these are kept in it ("▁"), so that a text comes back whole."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def learn(cls, lines: Iterable[str], size: int) -> Subwords:
        """At most `size` subwords, the three special ones among them, from a training text."""
        tokenizers = _library()
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=_SPECIAL[UNKNOWN]))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        tokenizer.decoder = tokenizers.decoders.Metaspace()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size, special_tokens=_SPECIAL, show_progress=False
        )
        tokenizer.train_from_iterator(lines, trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> Subwords:
        """What `to_json` wrote. Raises InvalidInput for anything else."""
        try:
            tokenizer = _library().Tokenizer.from_str(text)
            special = [tokenizer.token_to_id(token) for token in _SPECIAL]
        except DopingError:
            raise
        except Exception as error:  # the package raises no other kind
            raise _damaged(str(error)[:200]) from error
        if special != [UNKNOWN, START, END]:
            raise _damaged(f"special tokens {special}")
        return cls(tokenizer)

    def to_json(self) -> str:
        """All of it, as the package `tokenizers` writes it."""
        return self._tokenizer.to_str()

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The subwords of each line, without start and end."""
        return [found.ids for found in self._tokenizer.encode_batch(list(lines))]

    def decode(self, subwords: Sequence[int]) -> str:
        """The text of some subwords; start and end are no text."""
        return self._tokenizer.decode([int(index) for index in subwords])


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise DopingError(
            "subwords",
            "the package tokenizers",
            "none installed",
            "Install it: pip install 'tvm-doping[train]'.",
        ) from None
    return tokenizers


def _damaged(got: str) -> InvalidInput:
    return InvalidInput("subword vocabulary", "one that Subwords.to_json wrote", got, "Copy it again, whole.")
