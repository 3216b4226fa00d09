"""Intent detection: the data and its faults, batches of one length, and the whole way to a label from a compiled bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tvm_doping
from tvm_doping import checkpoint
from tvm_doping.cli import main
from tvm_doping.cli.predictions import label_of
from tvm_doping.errors import DataError, RecipeError
from tvm_doping.models import load_model, load_recipe
from tvm_doping.models.tasks.intent import IntentDetection, IntentModel
from tvm_doping.models.tasks.protocol import Share
from tvm_doping.models.tasks.sentences import labelled, sample
from tvm_doping.models.train import train
from tvm_doping.text import UNKNOWN, encode

TASK = IntentDetection()
TINY: dict[str, Any] = {
    "data.kind": "sample",
    "model.embedding": 16,
    "model.hidden": 16,
    "model.dropout": 0.1,
    "doping.compression": 5,
    "doping.anneal.frequency": 5,
    "train.epochs": 10,
    "train.batch": 8,
    "train.lr": 0.02,
}


def write(folder: Path, **splits: list[tuple[str, str]]) -> Path:
    for split, rows in splits.items():
        (folder / split).mkdir()
        (folder / split / "seq.in").write_text("".join(f"{text}\n" for text, _ in rows), encoding="utf-8")
        (folder / split / "label").write_text("".join(f"{label}\n" for _, label in rows), encoding="utf-8")
    return folder


def test_a_folder_is_read(tmp_path: Path) -> None:
    rows = [("fly to oslo", "fly"), ("fly to rome", "fly"), ("what is oslo", "city")]
    data = labelled(write(tmp_path, train=rows, dev=rows[:1], test=[("fly home", "new")]), least=2)
    assert data.vocabulary == ("fly", "oslo", "to", UNKNOWN) and data.labels == ("city", "fly")
    assert [text.tolist() for text in data.texts["train"]] == [[0, 2, 1], [0, 2, 3], [3, 3, 1]]
    assert data.wanted["train"].tolist() == [1, 1, 0]
    assert data.texts["test"][0].tolist() == [0, 3] and data.wanted["test"].tolist() == [2]


def test_faults_of_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        labelled(tmp_path / "absent", 1)
    write(tmp_path, train=[("a", "b")], test=[("a", "b")])
    with pytest.raises(DataError, match=r"valid split.*dev"):
        labelled(tmp_path, 1)
    write(tmp_path, dev=[("a", "b"), ("c", "d")])
    (tmp_path / "dev" / "label").write_text("b\n")
    with pytest.raises(DataError, match="2 and 1"):
        labelled(tmp_path, 1)
    (tmp_path / "dev" / "seq.in").write_text("a\n\n")
    (tmp_path / "dev" / "label").write_text("b\nb\n")
    with pytest.raises(DataError, match="none in line 2"):
        labelled(tmp_path, 1)
    (tmp_path / "dev" / "seq.in").unlink()
    with pytest.raises(DataError, match=r"seq.in"):
        labelled(tmp_path, 1)
    with pytest.raises(DataError, match="--data"):
        train("intent", None, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"no key model\.tied"):
        load_recipe("intent", {"model.tied": True})


@pytest.mark.parametrize("count", [1, 3])
def test_an_epoch_holds_every_sentence_once_in_batches_of_one_length(count: int) -> None:
    data = sample()

    def epoch(number: int, seed: int = 0) -> list[list[list[int]]]:
        shares = [Share(index=i, count=count) for i in range(count)]
        parts = [TASK.batches(data, batch=8, steps=1, seed=seed, epoch=number, share=s) for s in shares]
        assert len({len(part) for part in parts}) == 1
        return [tokens.T.tolist() for part in parts for tokens, _ in part]

    first = epoch(0)
    seen = sorted(text for batch in first for text in batch)
    everything = sorted(text.tolist() for text in data.texts["train"])
    assert seen == everything if count == 1 else all(text in everything for text in seen)
    assert first == epoch(0) != epoch(1) and first != epoch(0, seed=1)
    assert len(first) == len(epoch(1)) and max(map(len, first)) == 8


def test_metrics_are_those_of_their_definitions() -> None:
    data = sample()

    class Always(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.eye(len(data.labels))[2].repeat(tokens.shape[1], 1)

    found = TASK.evaluate(Always(), data, "test", batch=8, device=torch.device("cpu"), final=True)
    wanted = data.wanted["test"]
    right = float(np.mean(wanted == 2))
    assert found["accuracy"] == pytest.approx(right) == pytest.approx(found["micro_f1"])
    # precision is the share of that label, recall 1; the other labels have an F1 of 0
    assert found["macro_f1"] == pytest.approx(2 * right / (1 + right) / len(set(wanted.tolist())), rel=1e-5)


def test_the_whole_way_to_a_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = train("intent", out=tmp_path / "run", overrides=TINY, progress=False)
    assert metrics["test_accuracy"] > 0.9 and metrics["accuracy"] == metrics["test_accuracy"]
    config = checkpoint.read_config(tmp_path / "run")
    assert config["labels"] == ["alarm", "light", "music", "temperature"]
    assert config["compression"]["by_parameters"] == pytest.approx(5, rel=0.05)
    tvm_doping.compile(tmp_path / "run").save(tmp_path / "bundle")
    session, model = tvm_doping.load(tmp_path / "bundle", verify=True), load_model(tmp_path / "run")
    assert isinstance(model, IntentModel) and not session.bundle.manifest.streaming
    data = sample()
    with torch.no_grad():
        for tokens in data.texts["test"]:
            wanted = model(torch.from_numpy(tokens)[:, None]).numpy()
            np.testing.assert_allclose(session.run(tokens[:, None]), wanted, atol=1e-5, rtol=0)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["run", str(tmp_path / "bundle"), "--text", "set an alarm for noon\nplease light up the hall"])
    lines = capsys.readouterr().out.splitlines()
    assert not stop.value.code
    assert [line.split()[0] for line in lines[:2]] == ["alarm", "light"]
    tokens = encode("please light up the hall", session.bundle.vocabulary, session.bundle.manifest.tokens)
    outputs = session.run(tokens[:, None])
    label, chance = label_of([outputs], session.bundle.manifest).split()
    assert label == "light" and 50 < float(chance.rstrip("%")) <= 100
