"""Machine translation: subwords in, subwords out, BLEU; after Wu et al. 2016 (arXiv 1609.08144)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from tvm_doping.beam import Step, beam_search, longest_of
from tvm_doping.errors import DataError, DopingError
from tvm_doping.models.tasks.parallel import (
    IGNORED,
    ParallelCorpus,
    batches,
    parallel_text,
    sample,
)
from tvm_doping.models.tasks.protocol import Batch, Logits, Loss, Part, Share, Task, check_tied, perplexity_of
from tvm_doping.models.tasks.reading import by_length
from tvm_doping.models.tasks.seq2seq import Translator
from tvm_doping.subwords import END, START


class DataRecipe(Part):
    """Which sentence pairs."""

    kind: Literal["folder", "sample"] = Field(
        default="folder",
        description="folder: {train,val,test}.{en,de} of your own; sample: 50 built-in pairs",
    )
    source: str = Field(default="en", description="language to translate from: what the files' names end in")
    target: str = Field(default="de", description="language to translate to")
    vocab: int = Field(default=4000, ge=64, description="the most subwords of each language")


class ModelRecipe(Part):
    """The dense model."""

    embedding: int = Field(ge=1, description="size of the subword vectors, I of the first layers")
    hidden: int = Field(ge=2, multiple_of=2, description="hidden units of each LSTM layer, H")
    layers: int = Field(default=2, ge=1, description="LSTM layers of the encoder, and of the decoder, L")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="between embedding, layers and output")
    tied: bool = Field(
        default=False, description="output layer and the decoder's embedding share their weights"
    )
    smoothing: float = Field(default=0.0, ge=0, lt=1, description="label smoothing of the training loss")
    beam: int = Field(default=5, ge=1, description="width of the beam; while training 1, greedily")
    penalty: float = Field(default=0.6, ge=0, description="length penalty, the exponent alpha of Wu et al.")

    _ties = model_validator(mode="after")(check_tied)


class Translation(Task[ParallelCorpus]):
    """Sentence pairs; a batch's sources are of one length. BLEU chooses the checkpoint."""

    data_recipe, model_recipe = DataRecipe, ModelRecipe
    best, higher, unit, classes = "bleu", True, "tokens", True

    def model(self, **config: Any) -> Translator:
        return Translator(**config)

    def read(self, recipe: DataRecipe, folder: Path | None, name: str) -> ParallelCorpus:
        if recipe.kind == "sample":
            return sample()
        if folder is None:
            needs = f"a folder with train.{recipe.source}, train.{recipe.target}, val..., test..."
            raise DataError(f"data of {name}", needs, "none", "Name it with --data.")
        return parallel_text(folder, recipe.source, recipe.target, recipe.vocab)

    def config(self, settings: ModelRecipe, data: ParallelCorpus) -> dict[str, Any]:
        sizes = {"source_vocab": len(data.source), "target_vocab": len(data.target)}
        return {**sizes, **settings.model_dump()}

    def stored(self, data: ParallelCorpus) -> dict[str, Any]:
        return {"source_subwords": data.source.to_json(), "target_subwords": data.target.to_json()}

    def batches(
        self, data: ParallelCorpus, *, batch: int, steps: int, seed: int, epoch: int, share: Share
    ) -> Sequence[Batch]:
        share.of(batch)  # refuses what the processes cannot part
        found = batches(data.train, batch, seed=(seed, epoch), multiple=share.count)
        parts = [tuple(part[:, share.of(part.shape[1])].contiguous() for part in parts) for parts in found]
        if not parts:
            got = f"{len(data.train.source)} pairs"
            raise DataError(
                "train split", f"{share.count} pairs with sources of one length", got, "Add sentence pairs."
            )
        return parts

    def loss(self, model: nn.Module, batch: Batch, carried: tuple[Tensor, ...] | None) -> Loss:
        source, given, wanted = batch
        smoothing = getattr(getattr(model, "module", model), "smoothing", 0.0)  # "module": of many processes
        with parametrize.cached():  # each doped weight is computed once a batch
            logits = model(source, given).flatten(0, 1)
        labels = wanted.flatten()
        objective = functional.cross_entropy(logits, labels, ignore_index=IGNORED, label_smoothing=smoothing)
        with torch.no_grad():
            total = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        counted = labels != IGNORED
        count = int(counted.sum())
        taught = Logits(values=logits, counted=counted, scale=1 / count)
        return Loss(objective=objective, total=total, count=count, logits=taught)

    def evaluate(
        self,
        model: nn.Module,
        data: ParallelCorpus,
        split: str,
        *,
        batch: int,
        device: torch.device,
        final: bool,
    ) -> dict[str, float]:
        assert isinstance(model, Translator)
        pairs = getattr(data, split)
        width = model.beam if final else 1
        found = translate(model, pairs.source, width=width, batch=batch, device=device)
        texts = [data.target.decode(subwords) for subwords in found]
        score, _ = bleu(texts, [target for _, target in pairs.texts])
        return {"bleu": score}

    def shown(self, mean: float) -> tuple[str, float]:
        return "perplexity", perplexity_of(mean)


@torch.no_grad()
def translate(
    model: Translator,
    sources: Sequence[Sequence[int]],
    *,
    width: int | None = None,
    batch: int = 64,
    device: torch.device | None = None,
) -> list[list[int]]:
    """The translation of each source, as subwords; width: of the beam, the model's own if None."""
    was_training = model.training
    model.eval()
    found: list[list[int]] = [[] for _ in sources]
    beam = width or model.beam
    with parametrize.cached():
        for length, group in by_length(sources).items():
            for begin in range(0, len(group), batch):
                rows = group[begin : begin + batch]
                source = torch.tensor([list(sources[row]) for row in rows], device=device).T
                results = beam_search(
                    _step(model, source, beam),
                    len(rows),
                    start=START,
                    end=END,
                    longest=longest_of(length),
                    width=beam,
                    penalty=model.penalty,
                )
                for row, result in zip(rows, results, strict=True):
                    found[row] = result
    model.train(was_training)
    return found


def bleu(texts: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """(corpus BLEU of 0 to 100, sacrebleu's signature), tokenised as sacrebleu does by default (13a)."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise DopingError(
            "BLEU", "the package sacrebleu", "none installed", "Install it: pip install 'tvm-doping[train]'."
        ) from None
    metric = BLEU(force=True)  # says nothing of text that looks tokenised, as Multi30k's is
    score = metric.corpus_score(list(texts), [list(references)])
    return float(score.score), str(metric.get_signature())


def _step(model: Translator, source: Tensor, width: int) -> Step:
    """The decoder by PyTorch, over sources (S, M)."""
    memory, keys = (part.repeat_interleave(width, 1) for part in model.encoder(source))
    state: tuple[Tensor, Tensor] | None = None

    def step(tokens: np.ndarray, parents: np.ndarray) -> np.ndarray:
        nonlocal state
        if state is not None:
            order = torch.from_numpy(parents).to(memory.device)
            state = state[0][:, order], state[1][:, order]
        given = torch.from_numpy(tokens).to(memory.device)
        logits, state = model.decoder(given[None], memory, keys, state)
        values: np.ndarray = logits[0].float().cpu().numpy()
        return values

    return step
