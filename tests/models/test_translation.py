"""Translation: pairs in batches, a loss that counts what it should, BLEU, and the whole way to compiled code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tvm_doping import cli
from tvm_doping.build_translator import compile_translator
from tvm_doping.checkpoint import read_config
from tvm_doping.errors import BundleError, CheckpointError, DataError, InvalidInput, RecipeError
from tvm_doping.models import load_model, load_recipe
from tvm_doping.models.tasks import TASKS
from tvm_doping.models.tasks.parallel import IGNORED, batches, parallel_text, sample
from tvm_doping.models.tasks.protocol import Share
from tvm_doping.models.tasks.seq2seq import Translator
from tvm_doping.models.tasks.translation import bleu, translate
from tvm_doping.models.train import train
from tvm_doping.subwords import END, START, Subwords
from tvm_doping.translating import FILE, TranslatorSession

TINY = {
    "data.kind": "sample",
    "model.embedding": 24,
    "model.hidden": 24,
    "model.dropout": 0.0,
    "model.smoothing": 0.0,
    "train.epochs": 6,
    "train.batch": 8,
    "train.lr": 0.02,
    "train.save_steps": 5,
}


def command(*arguments: object) -> None:
    """Run `tvm-doping` in this process; it must succeed."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    assert not stop.value.code


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A doped translator after some steps on the built-in pairs."""
    folder = tmp_path_factory.mktemp("mt") / "run"
    options = TINY | {"doping.compression": 4, "doping.anneal.frequency": 2}
    train("mt", out=folder, overrides=options, progress=False)
    return folder


def test_training_learns_and_bleu_is_reported(run: Path) -> None:
    config = read_config(run)
    metrics = config["metrics"]
    assert 0 <= metrics["test_bleu"] <= 100
    assert (
        len(config["structures"]) == 2 * 2 * 2 + 2
    )  # both directions of the encoder's first layer, and three more
    model = load_model(run)
    assert isinstance(model, Translator)
    source, given, wanted = batches(sample().train, 64)[0]
    logits = model(source, given)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
    assert loss < 3.5  # uniform over the subwords is 4.8


@pytest.mark.slow
def test_compiled_code_translates_as_pytorch_does(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, pairs, model = tmp_path / "mt", sample().test, load_model(run)
    assert isinstance(model, Translator)
    command("compile", run, "--out", out)
    capsys.readouterr()
    with TranslatorSession(out) as translator:
        assert translator.verify() < 1e-4
        for width in (1, 4):
            # one by one, and again: a translation is not to depend on the one before
            found = [translator.subwords([text], beam=width)[0] for text, _ in pairs.texts]
            assert found == translate(model, pairs.source, width=width)
            assert translator.subwords([text for text, _ in pairs.texts], beam=width) == found
        assert translator.translate([""]) == [""]
        sentences = [text for text, _ in pairs.texts]
        command("run", out, "--verify", "--text", "\n".join(sentences))
        assert capsys.readouterr().out.splitlines() == translator.translate(sentences)
        with pytest.raises(InvalidInput, match="list of sentences"):
            translator.translate("a dog .")
    (out / FILE).write_text((out / FILE).read_text().replace('"beam": 5', '"beam": 0'))
    with pytest.raises(BundleError, match="beam"):
        TranslatorSession(out)


def test_only_a_translator_is_compiled_as_one(run: Path, tmp_path: Path) -> None:
    config = run / "config.json"
    other = tmp_path / "config.json"
    other.write_text(config.read_text().replace('"task": "translation"', '"task": "language_model"'))
    with pytest.raises(CheckpointError, match="translation"):
        compile_translator(tmp_path, tmp_path / "out")


@given(st.integers(1, 9), st.one_of(st.none(), st.integers(0, 99)), st.integers(1, 2))
def test_batches_hold_every_pair_once(size: int, seed: int | None, multiple: int) -> None:
    pairs = sample().train
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for source, given_, wanted in batches(pairs, size * multiple, seed, multiple):
        assert source.shape[1] % multiple == 0 and source.shape[1] <= size * multiple
        for column in range(source.shape[1]):
            length = int((wanted[:, column] != IGNORED).sum())
            target = wanted[:length, column].tolist()
            assert given_[:length, column].tolist() == [START, *target[:-1]] and target[-1] == END
            found.append((tuple(source[:, column].tolist()), tuple(target[:-1])))
    every = sorted(zip(pairs.source, pairs.target, strict=True))
    assert sorted(found) == every if multiple == 1 else set(found) <= set(every)


def test_an_epoch_is_the_same_for_the_same_seed() -> None:
    task, data = TASKS["translation"], sample()

    def epoch(number: int, share: Share | None = None) -> list[Any]:
        given_ = share or Share()
        found = task.batches(data, batch=8, steps=1, seed=3, epoch=number, share=given_)
        return [[part.tolist() for part in batch] for batch in found]

    assert epoch(0) == epoch(0) != epoch(1)
    assert len(epoch(0)) == len(epoch(1))
    halves = [epoch(0, Share(index=index, count=2)) for index in range(2)]
    assert len(halves[0]) == len(halves[1])


def test_what_pads_a_target_is_no_loss() -> None:
    torch.manual_seed(0)
    task, model = TASKS["translation"], Translator(20, 20, 8, 8)
    source, wanted = torch.randint(3, 20, (4, 2)), torch.randint(3, 20, (5, 2))
    given_ = torch.randint(3, 20, (5, 2))
    loss = task.loss(model, (source, given_, wanted), None)
    pad = torch.full((2, 2), IGNORED)
    padded = (source, torch.cat([given_, torch.full((2, 2), END)]), torch.cat([wanted, pad]))
    more = task.loss(model, padded, None)
    assert more.count == loss.count == 10
    torch.testing.assert_close(more.objective, loss.objective)
    torch.testing.assert_close(more.total, loss.total)


def test_bleu_is_sacrebleus() -> None:
    score, signature = bleu(["the dog sleeps ."], ["the dog sleeps ."])
    assert score == pytest.approx(100)
    assert "tok:13a" in signature and "version:" in signature


@given(st.lists(st.text("abz äß", min_size=1), min_size=1, max_size=5))
def test_subwords_give_the_text_back(lines: list[str]) -> None:
    texts = [" ".join(line.split()) for line in lines]
    learned = Subwords.learn([*texts, "a b z ä ß"], 64)
    again = Subwords.from_json(learned.to_json())
    assert [again.decode(found) for found in again.encode(texts)] == texts


@pytest.mark.parametrize("text", ["{}", "no json", '{"version": "1.0"}'])
def test_damaged_subwords_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="subword"):
        Subwords.from_json(text)


def test_files_of_pairs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        parallel_text(tmp_path / "none")
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.en").write_text("a dog .\n\na  cat .\n", encoding="utf-8")
        (tmp_path / f"{split}.de").write_text("ein hund .\n\neine katze .\n", encoding="utf-8")
    corpus = parallel_text(tmp_path)
    assert corpus.train.texts == (("a dog .", "ein hund ."), ("a cat .", "eine katze ."))
    (tmp_path / "val.de").write_text("ein hund .\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"3 in val\.en, 1 in val\.de"):
        parallel_text(tmp_path)
    (tmp_path / "val.de").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="empty"):
        parallel_text(tmp_path)
    (tmp_path / "val.de").unlink()
    with pytest.raises(DataError, match=r"valid split.*val\.de"):
        parallel_text(tmp_path)


def test_impossible_recipes_are_refused() -> None:
    for wrong in (
        {"model.hidden": 25},
        {"model.embedding": 10},
        {"model.smoothing": 1},
        {"data.level": "word"},
    ):
        with pytest.raises(RecipeError):
            load_recipe("mt", wrong)
