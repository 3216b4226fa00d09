"""Forecasting: series and their faults, windows, metrics, and the whole way to forecasts from a compiled bundle."""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tvm_doping
from tests.models.conftest import stop
from tvm_doping import checkpoint
from tvm_doping.cli import main
from tvm_doping.errors import CheckpointError, DataError, InvalidInput
from tvm_doping.models import load_model
from tvm_doping.models.metrics import read_metrics
from tvm_doping.models.tasks.forecast import Forecasting, ForecastModel
from tvm_doping.models.tasks.protocol import Share
from tvm_doping.models.tasks.series import Series, csv_files, sample
from tvm_doping.models.train import train

TASK = Forecasting()
SIZES: dict[str, Any] = {"columns": None, "target": None, "window": 24, "horizon": 6, "season": 24}
TINY: dict[str, Any] = {
    "data.kind": "sample",
    "data.window": 24,
    "data.horizon": 6,
    "model.hidden": 16,
    "model.layers": 2,
    "model.dropout": 0.1,
    "doping.compression": 4,
    "doping.anneal.frequency": 5,
    "train.epochs": 6,
    "train.batch": 16,
    "train.lr": 0.02,
    "train.log_steps": 5,
    "train.save_steps": 5,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A doped forecaster after some steps on the built-in series."""
    folder = tmp_path_factory.mktemp("forecast") / "run"
    train("forecast", out=folder, overrides=TINY, progress=False)
    return folder


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forecast") / "bundle"
    tvm_doping.compile(run).save(folder)
    return folder


def table(rows: int, first: int = 0, header: str = "time,load,cold") -> str:
    """CSV whose load is the row's number, and cold ten times that."""
    lines = [f"2024-01-{1 + i // 24:02} {i % 24:02}:00,{i},{10 * i}" for i in range(first, first + rows)]
    return "\n".join([header, *lines]) + "\n"


def test_one_file_is_split_by_time(tmp_path: Path) -> None:
    (tmp_path / "any.csv").write_text("\ufeff" + table(200), encoding="utf-8")
    data = csv_files(tmp_path, **SIZES)
    assert data.columns == ("load", "cold") and data.target == "load"
    loads = {split: (piece[0, 0], piece[-1, 0]) for split, (piece,) in data.pieces.items()}
    # validation and test begin with the window before them: no forecast row is in two splits
    assert loads == {"train": (0, 139), "valid": (140 - 24, 159), "test": (160 - 24, 199)}
    with_text = re.sub(r"(?m)$", ",dry", table(200)).replace("cold,dry", "cold,sky").removesuffix(",dry")
    (tmp_path / "any.csv").write_text(with_text, encoding="utf-8")
    other = csv_files(tmp_path, **SIZES | {"columns": ["cold", "load"], "target": "load"})
    assert other.columns == ("cold", "load") and other.sha256 != data.sha256
    x, wanted = other.window_batch("test", other.places("test")[[0, -1]])
    assert x.shape == (24, 2, 2) and wanted.shape == (24, 2, 6)
    assert x[0, 0].tolist() == [1360, 136] and wanted[-1, 0].tolist() == [*range(160, 166)]
    assert wanted[:, 1, 0].tolist() == [*range(171, 195)] and wanted[-1, 1, -1] == 199
    found = data.normalisation()
    np.testing.assert_allclose(found["mean"], [69.5, 695])
    np.testing.assert_allclose(found["scale"], np.array([1, 10]) * np.std(np.arange(140)), rtol=1e-6)


def test_three_files_and_a_constant_column(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "valid", "test")):
        text = table(40, 50 * number).replace("cold", "load_too")
        (tmp_path / f"{split}.csv").write_text(re.sub(r",\d+$", ",7", text, flags=re.M), encoding="utf-8")
    data = csv_files(tmp_path, **SIZES)
    assert [data.pieces[split][0][0, 0] for split in data.pieces] == [0, 50, 100]
    assert len(data.places("valid")) == 40 - 30 + 1 and data.normalisation()["scale"][1] == 1
    (tmp_path / "test.csv").write_text(table(40), encoding="utf-8")
    with pytest.raises(DataError, match=r"test split.*load, cold, not load, load_too"):
        csv_files(tmp_path, **SIZES)


@pytest.mark.parametrize(
    ("text", "chosen", "message"),
    [
        ("", {}, "some text"),
        ("\ufeff", {}, "some text"),
        ("1,2,3\n" * 200, {}, "first line.*names.*no numbers"),
        (table(200, header="time,load,load"), {}, "first line.*all different"),
        (table(200).replace(",7,70", ",7"), {}, "line 9 .*3 cells.*got 2"),
        (table(200).replace(",7,70", ",,70"), {}, "line 9 .*column load.*''.*Fill the gap"),
        (table(200).replace(",7,70", ",7,warm"), {}, "line 9 .*column cold.*'warm'"),
        (table(200).replace(",7,70", ",7,nan"), {}, "line 9 .*column cold.*'nan'"),
        (table(200).replace(",7,70", ",7,1e39"), {}, "line 9 .*column cold.*'1e39'"),
        (table(200).replace("2024-01-01 07:00,7,70\n", ""), {}, "column time.*1:00:00 apart.*2:00:00 from"),
        (
            "time,load,cold\n" + "\n".join(table(200).splitlines()[:0:-1]),
            {},
            "go forward.*06:00 after 2024-01-09 07:00",
        ),
        (re.sub(r" \d\d:00", "", table(200)), {}, "go forward.*each time once"),
        (re.sub(r"2024-01-01 07:00", "", table(200)), {}, "a time in each row.*after 2024-01-01 06:00"),
        ("time\n" + "1\n" * 200, {}, "at least one column of numbers"),
        (table(50), {}, "valid split.*30 rows.*window of 24 and 6.*got 29"),
        (table(28), {}, "train split.*30 rows.*got 20"),
        (table(200), {"target": "wind"}, "data.target.*load, cold.*'wind'"),
        (table(200), {"columns": ["load", "wind"]}, "data.columns.*load, cold.*'wind'"),
        (table(200), {"columns": ["load", "load"]}, "data.columns.*once"),
        (table(200), {"columns": ["cold"], "target": "load"}, "data.target.*cold.*'load'"),
        (table(200), {"season": 25}, "data.season.*window 24"),
    ],
)
def test_faults_of_a_file_are_named(tmp_path: Path, text: str, chosen: dict[str, Any], message: str) -> None:
    (tmp_path / "some.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.compile(message, re.S)):
        csv_files(tmp_path, **SIZES | chosen)


def test_faults_of_a_folder_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no folder"):
        csv_files(tmp_path / "absent", **SIZES)
    with pytest.raises(DataError, match=r"one \.csv file.*no \.csv"):
        csv_files(tmp_path, **SIZES)
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(table(200))
    with pytest.raises(DataError, match=r"valid\.csv.*test\.csv, train\.csv"):
        csv_files(tmp_path, **SIZES)
    with pytest.raises(DataError, match="--data"):
        train("forecast", None, tmp_path / "run", overrides={"data.kind": "csv"})
    with pytest.raises(DataError, match="a batch of 500 windows"):
        train("forecast", None, tmp_path / "run", overrides=TINY | {"train.batch": 500})
    monkeypatch.setitem(sys.modules, "pvlib", None)
    with pytest.raises(DataError, match=r"pip install 'tvm-doping\[train\]'"):
        train("forecast", None, tmp_path / "run")
    with pytest.raises(InvalidInput, match="a scale above 0"):
        ForecastModel(mean=[0, 1], scale=[1, 0], target=0, horizon=2, hidden=4)


@pytest.mark.parametrize("count", [1, 2])
def test_an_epoch_draws_windows_anew(count: int) -> None:
    data = sample(**SIZES)

    def epoch(number: int, seed: int = 0) -> list[torch.Tensor]:
        shares = [Share(index=i, count=count) for i in range(count)]
        parts = [TASK.batches(data, batch=16, steps=1, seed=seed, epoch=number, share=s) for s in shares]
        return [torch.cat([x for x, _ in batch], 1) for batch in zip(*parts, strict=True)]

    first, whole = epoch(0), data.pieces["train"][0]
    assert len(first) == len(epoch(1)) == (len(whole) - 29) // 6 // 16
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(0), strict=True))
    assert not torch.equal(first[0], epoch(1)[0]) and not torch.equal(first[0], epoch(0, seed=1)[0])
    # however many processes share it, a batch is the same
    alone = TASK.batches(data, batch=16, steps=1, seed=0, epoch=0, share=Share())
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, alone, strict=True))


def test_metrics_are_those_of_their_definitions() -> None:
    ramp = np.stack([np.arange(60.0), np.ones(60)], 1).astype(np.float32)
    pieces: dict[str, tuple[np.ndarray, ...]] = dict.fromkeys(("train", "valid", "test"), (ramp,))
    data = Series(columns=("load", "one"), target="load", window=8, horizon=5, season=4, pieces=pieces)

    class Last(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[..., :1].expand(-1, -1, 5)

    found = TASK.evaluate(Last(), data, "test", batch=8, device=torch.device("cpu"), final=True)
    # the last value is 1 to 5 steps behind; the season before 4, and for the fifth step, two seasons ahead, 8
    assert found["mae"] == pytest.approx(3) and found["rmse"] == pytest.approx(np.sqrt(11))
    assert found["persistence_rmse"] == pytest.approx(np.sqrt((4 * 16 + 64) / 5))
    assert found["skill"] == pytest.approx(1 - found["rmse"] / found["persistence_rmse"])


def test_training_learns(run: Path) -> None:
    config = checkpoint.read_config(run)
    losses = [row["train_loss"] for row in read_metrics(run) if row["event"] == "epoch"]
    assert losses[-1] < losses[0] / 2
    metrics = config["metrics"]
    assert metrics["rmse"] == metrics["test_rmse"] and metrics["test_skill"] > 0.3
    assert config["columns"] == ["load", "cold", "sine"] and config["target"] == "load"
    assert config["normalisation"] == {key: config["model"][key] for key in ("mean", "scale")}
    assert len(config["structures"]) == 4
    assert config["compression"]["by_parameters"] == pytest.approx(4, rel=0.05)


def test_the_bundle_forecasts_as_pytorch_does_in_the_datas_units(
    run: Path, bundle: Path, tmp_path: Path
) -> None:
    model, data = load_model(run), sample(**SIZES)
    x, _ = data.window_batch("test", data.places("test")[:20])
    with torch.no_grad():
        wanted = model(x).numpy()
    with tvm_doping.load(bundle, verify=True) as session:
        assert session.bundle.manifest.columns == ("load", "cold", "sine")
        np.testing.assert_allclose(session.run(x.numpy()), wanted, atol=1e-3, rtol=0)
        # a stream: each hour gives the forecast of those after it
        session.reset()
        steps = [session.step(hour) for hour in x.numpy()]
        np.testing.assert_allclose(np.stack(steps), wanted, atol=1e-3, rtol=0)
    np.save(tmp_path / "past.npy", x.numpy())
    with pytest.raises(SystemExit) as stop:
        main(["run", str(bundle), str(tmp_path / "past.npy"), "--out", str(tmp_path / "next.npy")])
    assert not stop.value.code
    np.testing.assert_allclose(np.load(tmp_path / "next.npy"), wanted, atol=1e-3, rtol=0)


def test_a_stopped_run_resumes_to_the_bit(run: Path, tmp_path: Path) -> None:
    begin = partial(train, "forecast", out=tmp_path / "run", overrides=TINY, progress=False)
    stop(begin, 23, Forecasting, "loss")
    train("forecast", out=tmp_path / "run", overrides=TINY, progress=False)
    sums = [checkpoint.read_config(folder)["weights_sha256"] for folder in (run, tmp_path / "run")]
    assert sums[0] == sums[1]


def test_a_dense_start_needs_the_same_normalisation(run: Path, tmp_path: Path) -> None:
    dense = TINY | {"train.epochs": 1}
    train("forecast-dense", out=tmp_path / "dense", overrides=_without_doping(dense), progress=False)
    start = dense | {"train.start": str(tmp_path / "dense"), "doping.init": "nearest"}
    metrics = train("forecast", out=tmp_path / "doped", overrides=start, progress=False)
    fresh = train("forecast", out=tmp_path / "fresh", overrides=dense, progress=False)
    assert metrics["test_rmse"] < fresh["test_rmse"]
    (tmp_path / "data").mkdir()
    header = "load,cold,sine"
    rows = np.random.default_rng(0).standard_normal((400, 3))
    np.savetxt(tmp_path / "data" / "x.csv", rows, delimiter=",", header=header, comments="")
    with pytest.raises(CheckpointError, match="normalisation"):
        train("forecast", tmp_path / "data", tmp_path / "other", overrides=start | {"data.kind": "csv"})


def test_weather_of_pvlib() -> None:
    pytest.importorskip("pvlib")
    data = TASK.read(TASK.data_recipe(kind="pvlib"), None, "test")
    pieces = data.pieces
    assert [len(pieces[split]) for split in pieces] == [36, 36, 36] and data.target == "temperature"
    hours = {split: sum(map(len, parts)) for split, parts in pieces.items()}
    # 20 days a month, 5 and the rest, without 6 hours at the ends, and with the window of 72 hours before
    assert hours == {
        "train": 36 * 474,
        "valid": 36 * (72 + 120),
        "test": 3 * (365 * 24 - 12 * (600 + 6)) + 36 * 72,
    }
    stations = [np.concatenate(pieces["train"][at : at + 12]) for at in (0, 12, 24)]
    warm = [float(rows[:, 0].mean()) for rows in stations]
    assert warm == pytest.approx([4.3, 14.5, 24.5], abs=1)  # Alaska, North Carolina, Florida
    for rows in stations:
        assert (
            np.isfinite(rows).all()
            and (np.abs(rows[:, 0]) < 45).all()
            and (rows[:, 1] <= rows[:, 0] + 1).all()
        )
        # the sun is over the horizon at noon and never at midnight
        hour, sun = data.columns.index("hour_cosine"), data.columns.index("sun")
        assert rows[rows[:, hour] < -0.99, sun].min() > 0 and rows[rows[:, hour] > 0.99, sun].max() == 0


def _without_doping(overrides: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in overrides.items() if not key.startswith("doping")}
