"""Time series to forecast: what a split of them gives, CSV files, and a small made-up one."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvm_doping.errors import DataError
from tvm_doping.models.tasks.protocol import SPLITS
from tvm_doping.models.tasks.reading import read_text

# Names of a column that is no input; those of ISO 8601 are checked to go forward by equal steps.
_TIMES = ("time", "date", "datetime", "timestamp")
_SHARES = (0.7, 0.8)  # of one file: where the validation and the test split begin
_NEEDS = "a folder with train.csv, valid.csv and test.csv, or with one .csv file"


@dataclass(frozen=True, kw_only=True)
class Series:
    """For each split its pieces, float32 (rows, I), rows evenly spaced in time; a window lies within a piece.

    columns  names of the I columns, and which of them is the target;
    window, horizon, season  see the recipe's part `data`.

    The first `window` rows of a piece of the validation or test split may be the last ones of the split before: what is known
    when the first row of the split is forecast.
    """

    columns: tuple[str, ...]
    target: str
    window: int
    horizon: int
    season: int
    pieces: dict[str, tuple[np.ndarray, ...]]

    @property
    def sha256(self) -> str:
        sizes = (self.window, self.horizon, self.season)
        digest = hashlib.sha256(repr((self.columns, self.target, sizes)).encode())
        for split in SPLITS:
            for piece in self.pieces[split]:
                digest.update(repr(piece.shape).encode() + piece.tobytes())
        return digest.hexdigest()

    def normalisation(self) -> dict[str, list[float]]:
        """Mean and deviation of each column over the training split, as float32 has them; the scale of a constant column is 1."""
        rows = np.concatenate(self.pieces["train"]).astype(np.float64)
        mean, scale = rows.mean(0).astype(np.float32), rows.std(0).astype(np.float32)
        scale[np.ptp(rows, 0) == 0] = 1
        return {"mean": mean.tolist(), "scale": scale.tolist()}

    def places(self, split: str) -> np.ndarray:
        """(piece, first row) of every window of a split that has the rows to forecast behind it, int64 (windows, 2)."""
        size = self.window + self.horizon
        return np.array(
            [(i, row) for i, piece in enumerate(self.pieces[split]) for row in range(len(piece) - size + 1)],
            np.int64,
        ).reshape(-1, 2)

    def window_batch(self, split: str, places: np.ndarray) -> tuple[Tensor, Tensor]:
        """Of N places x (window, N, I), and wanted (window, N, horizon): the target's next values after each row of x."""
        size, pieces = self.window + self.horizon, self.pieces[split]
        rows = torch.from_numpy(np.stack([pieces[i][row : row + size] for i, row in places], 1))
        target = rows[:, :, self.columns.index(self.target)]
        return rows[: self.window], target.unfold(0, self.horizon, 1)[1:].contiguous()

    def persistence(self, x: Tensor) -> Tensor:
        """The forecast (N, horizon) that repeats the last season of x (window, N, I)."""
        last = x[-self.season :, :, self.columns.index(self.target)].T
        return last[:, torch.arange(self.horizon) % self.season]


def csv_files(folder: Path, **chosen: Any) -> Series:
    """`{train,valid,test}.csv`, or one .csv file, whose first 70 % of rows are to train on, the next 10 % to validate and the
    last 20 % to test. A line of column names, then a row for each time step, the oldest first, all cells numbers but those of a
    column called time, date, datetime or timestamp, which is no input.

    chosen: columns, target, window, horizon, season of the recipe. Raises DataError for what is missing, no number, uneven in
    time, or too short for a window and what is to be forecast.
    """
    if not folder.is_dir():
        raise DataError(str(folder), _NEEDS, "no folder there", "Give its path as --data.")
    found = sorted(path.name for path in folder.glob("*.csv"))
    if {f"{split}.csv" for split in SPLITS} <= set(found):
        tables = {split: _table(folder / f"{split}.csv", split, chosen["columns"]) for split in SPLITS}
        names = tables["train"][0]
        for split, (other, _) in tables.items():
            if other != names:
                got = f"{', '.join(other)}, not {', '.join(names)}"
                raise DataError(f"{split} split", "the columns of train.csv", got, "Correct the first line.")
        return chosen_series(names, {split: (rows,) for split, (_, rows) in tables.items()}, **chosen)
    if len(found) != 1:
        raise DataError(str(folder), _NEEDS, ", ".join(found)[:200] or "no .csv", "Put them there.")
    names, rows = _table(folder / found[0], "data", chosen["columns"])
    return chosen_series(names, _by_time(rows, chosen["window"]), **chosen)


def sample(**chosen: Any) -> Series:
    """1,200 made-up hours in three columns: the load of a heating, which follows the cold of some hours ago and the time of day."""
    random = np.random.default_rng(0)
    hours = np.arange(1200)
    day = 2 * np.pi * hours / 24
    slow = np.convolve(random.standard_normal(len(hours) + 47), np.full(48, 0.5), "valid")
    cold = 5 + 4 * np.cos(day) + slow
    load = 50 + 3 * np.roll(cold, 6) + 8 * np.sin(day) + random.standard_normal(len(hours))
    rows = np.stack([load, cold, np.sin(day)], 1)[24:].astype(np.float32)
    return chosen_series(("load", "cold", "sine"), _by_time(rows, chosen["window"]), **chosen)


def parted(pieces: Sequence[tuple[np.ndarray, int, int]], window: int) -> dict[str, tuple[np.ndarray, ...]]:
    """Pieces, each with the rows at which its validation and its test split begin, by split: these two with the window before."""
    return {
        "train": tuple(rows[:valid] for rows, valid, _ in pieces),
        "valid": tuple(rows[max(valid - window, 0) : test] for rows, valid, test in pieces),
        "test": tuple(rows[max(test - window, 0) :] for rows, _, test in pieces),
    }


def chosen_series(
    names: Sequence[str],
    pieces: dict[str, tuple[np.ndarray, ...]],
    *,
    columns: Sequence[str] | None,
    target: str | None,
    window: int,
    horizon: int,
    season: int,
) -> Series:
    """The series of the chosen ones of the named columns. Raises DataError for a column that there is not, and a split in which
    no window fits with what is to be forecast."""
    kept = _kept(names, columns)
    aim = kept[0] if target is None else target
    if aim not in kept:
        raise DataError("data.target", f"one of {', '.join(kept)}", repr(aim), "Correct the name.")
    if season > window:
        got = f"season {season}, window {window}"
        raise DataError("data.season", "no more rows than data.window has", got, "Change one of them.")
    order = [list(names).index(name) for name in kept]
    found = Series(
        columns=kept,
        target=aim,
        window=window,
        horizon=horizon,
        season=season,
        pieces={split: tuple(piece[:, order] for piece in parts) for split, parts in pieces.items()},
    )
    for split, parts in found.pieces.items():
        if not len(found.places(split)):
            needs = f"{window + horizon} rows, a window of {window} and {horizon} to forecast"
            got = f"{max(map(len, parts), default=0)}, those of the window before the split included"
            remedy = "Add rows, or lower data.window or data.horizon."
            raise DataError(f"{split} split", needs, got, remedy)
    return found


def _table(path: Path, split: str, columns: Sequence[str] | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the columns of numbers, all or the chosen ones, and their rows in float32."""
    reader = csv.reader(read_text(path, split).splitlines())
    try:
        first, *cells = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except csv.Error as error:
        raise DataError(
            f"line {reader.line_num} of {path}", "CSV", str(error), "Correct the line."
        ) from error
    names = first[1]
    if len(set(names)) != len(names) or not all(names) or any(map(_is_number, names)):
        needs, got = "the columns' names, all different, no numbers", ", ".join(names)[:200]
        raise DataError(f"first line of {path}", needs, got, "Correct it.")
    for line, row in cells:
        if len(row) != len(names):
            needs = f"{len(names)} cells, as in the first"
            raise DataError(f"line {line} of {path}", needs, f"{len(row)}", "Correct the line.")
    times = [name for name in names if name.lower() in _TIMES]
    for name in times:
        _check_even([row[names.index(name)] for _, row in cells], f"column {name} of {path}")
    kept = _kept([name for name in names if name not in times], columns)
    rows = np.empty((len(cells), len(kept)), np.float32)
    for at, name in enumerate(kept):
        place = names.index(name)
        for number, (line, row) in enumerate(cells):
            if not _is_number(row[place]):
                where, remedy = (
                    f"line {line} of {path}, column {name}",
                    "Fill the gap, or name others in data.columns.",
                )
                raise DataError(where, "a number", repr(row[place])[:80], remedy)
            rows[number, at] = float(row[place])
    return kept, rows


def _by_time(rows: np.ndarray, window: int) -> dict[str, tuple[np.ndarray, ...]]:
    """One series, by split."""
    valid, test = (round(len(rows) * share) for share in _SHARES)
    return parted([(rows, valid, test)], window)


def _kept(names: Sequence[str], columns: Sequence[str] | None) -> tuple[str, ...]:
    """The chosen columns, each one of the names, and at least one. None: all of them."""
    kept = tuple(names if columns is None else columns)
    strange = next((name for name in kept if name not in names), None)
    if strange is not None:
        raise DataError("data.columns", f"some of {', '.join(names)}", repr(strange), "Correct the name.")
    if not kept or len(set(kept)) != len(kept):
        got = ", ".join(kept) or "none"
        raise DataError("data.columns", "at least one column of numbers, each once", got, "Correct them.")
    return kept


def _is_number(text: str) -> bool:
    """Whether a text is a finite number that float32 holds."""
    try:
        return abs(float(text)) <= float(np.finfo(np.float32).max)
    except ValueError:
        return False


def _check_even(texts: Sequence[str], what: str) -> None:
    """Raises DataError where one is blank, and where times in ISO 8601 do not go forward by equal steps; others are taken to."""
    if not all(texts):
        blank = list(texts).index("")
        got = f"none after {texts[blank - 1]}" if blank else "none in the first"
        raise DataError(what, "a time in each row", got, "Fill the gap, or take the column out.")
    try:
        times = [datetime.fromisoformat(text) for text in texts]
        steps = [b - a for a, b in pairwise(times)]
    except (ValueError, TypeError):  # other forms; some with a time zone and some without
        return
    if steps and steps[0] <= timedelta(0):
        got = f"{texts[1]} after {texts[0]}"
        raise DataError(what, "times that go forward", got, "Put the rows in order, each time once.")
    uneven = next((i for i, step in enumerate(steps) if step != steps[0]), None)
    if uneven is not None:
        got = f"{steps[uneven]} from {texts[uneven]} to {texts[uneven + 1]}"
        remedy = "Fill in or merge rows; times that jump with the clock are better in UTC."
        raise DataError(what, f"times {steps[0]} apart, as the first two are", got, remedy)
