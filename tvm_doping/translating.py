"""A deployed translator: a folder of two bundles and the subwords of both languages, and the session that translates with them.

Needs NumPy, TVM's runtime library and the package `tokenizers`; imports neither torch nor TVM's compiler.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tvm_doping.beam import Step, beam_search, longest_of
from tvm_doping.errors import BundleError, InvalidInput, SessionError
from tvm_doping.runtime import Session, load
from tvm_doping.strict_json import read_json
from tvm_doping.subwords import END, START, Subwords

FILE, ENCODER, DECODER = "translator.json", "encoder", "decoder"


class TranslatorFile(BaseModel):
    """translator.json: what the two bundles beside it do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format_version: Literal[1] = 1
    name: str
    source_subwords: str = Field(description="as Subwords.to_json writes them")
    target_subwords: str
    beam: int = Field(ge=1)
    penalty: float = Field(ge=0)
    metrics: dict[str, Any] = {}


class TranslatorSession:
    """Translates with compiled code: the encoder reads a sentence once, the decoder steps, all beams side by side.

    Used as `with TranslatorSession(folder) as translator: translator.translate(["a dog runs ."])`. Raises BundleError for a folder
    that is missing, damaged, or made for another machine.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, target: str = "auto", threads: int | None = None
    ) -> None:
        self.file = _read(Path(folder))
        self._source = Subwords.from_json(self.file.source_subwords)
        self._target = Subwords.from_json(self.file.target_subwords)
        self.encoder = load(Path(folder) / ENCODER, target=target, threads=threads)
        self.decoder = load(Path(folder) / DECODER, target=target, threads=threads)
        _check(folder, self.encoder, len(self._source))
        _check(folder, self.decoder, len(self._target))

    def translate(
        self, texts: Sequence[str], *, beam: int | None = None, penalty: float | None = None
    ) -> list[str]:
        """The translation of each text, a sentence without line ends; what spaces part should be as in the training texts.

        beam, penalty: of the search (see `beam.beam_search`); by default those of the model's recipe.
        """
        return [self._target.decode(found) for found in self.subwords(texts, beam=beam, penalty=penalty)]

    def subwords(
        self, texts: Sequence[str], *, beam: int | None = None, penalty: float | None = None
    ) -> list[list[int]]:
        """The same as subwords of the target language."""
        if isinstance(texts, str):
            raise InvalidInput("texts", "a list of sentences", "one text", "Put it into a list.")
        width = self.file.beam if beam is None else beam
        alpha = self.file.penalty if penalty is None else penalty
        return [self._search(source, width, alpha) for source in self._source.encode(texts)]

    def verify(self) -> float:
        """Run the golden inputs of both bundles; returns the largest difference. BundleError where it is too large."""
        return max(self.encoder.verify(), self.decoder.verify())

    def close(self) -> None:
        """Let go of both models. Closing twice is no error."""
        self.encoder.close()
        self.decoder.close()

    def __enter__(self) -> TranslatorSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _search(self, source: list[int], width: int, penalty: float) -> list[int]:
        if not source:
            return []
        if self.decoder.closed:
            raise SessionError("translator", "an open one", "one that was closed", "Load it again.")
        memory, keys = self.encoder.run(np.array(source, np.int64)[:, None])
        found = beam_search(
            self._step(np.repeat(memory, max(width, 1), 1), np.repeat(keys, max(width, 1), 1)),
            1,
            start=START,
            end=END,
            longest=longest_of(len(source)),
            width=width,
            penalty=penalty,
        )
        return found[0]

    def _step(self, memory: np.ndarray, keys: np.ndarray) -> Step:
        """The decoder from its zero state, over a memory (S, N, H) that stays."""
        self.decoder.reset()
        begun = False

        def step(tokens: np.ndarray, parents: np.ndarray) -> np.ndarray:
            nonlocal begun
            if begun and (parents != np.arange(len(parents))).any():
                self.decoder.state = {name: value[:, parents] for name, value in self.decoder.state.items()}
            begun = True
            logits: np.ndarray = self.decoder.step(tokens, memory, keys)
            return logits

        return step


def _read(folder: Path) -> TranslatorFile:
    path = folder / FILE

    def refuse(needs: str, got: str) -> BundleError:
        return BundleError(str(path), needs, got, "Compile the translator again.")

    try:
        return TranslatorFile.model_validate(read_json(path, refuse))
    except FileNotFoundError:
        raise refuse("a translator's folder", f"no {FILE} in {folder}") from None
    except ValidationError as error:
        raise refuse("known fields of the right types", str(error.errors()[0])[:400]) from error


def _check(folder: str | os.PathLike[str], session: Session, vocabulary: int) -> None:
    """The subwords must be those of the bundles."""
    below = session.bundle.manifest.inputs[0].below
    if below != vocabulary:
        raise BundleError(
            f"{session.bundle.manifest.name} in {folder}",
            f"{vocabulary} subwords, as {FILE} has them",
            f"{below}",
            "Copy the folder again, whole.",
        )
