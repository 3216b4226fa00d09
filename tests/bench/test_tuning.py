"""The proof of tuning: strategies run on a table of measurements, and what they find on it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tuning.making import tasks
from tvm_doping import targets
from tvm_doping.bench import tuning
from tvm_doping.tuning.metaschedule import Strategy
from tvm_doping.tuning.space import Space, space_of, start


def reduced() -> tuple[Space, dict[str, float]]:
    """A space of 72 candidates or so, and times for them: those of the predicted choice are 1."""
    task = next(task for task in tasks() if task.operation == "lstm")
    whole = space_of(task, targets.resolve("auto"))
    axes = dict(whole.axes)
    for name, way in start(whole).ways.items():
        plain = way.model_copy(update={"order": "left"})
        others = [w for w in axes[f"{name}.way"] if w != plain]
        axes[f"{name}.way"] = (plain, *others[:3])
    space = replace(whole, axes=axes)
    rng, table = np.random.default_rng(0), {}
    for decisions in itertools.product(*(range(len(axis)) for axis in space.axes.values())):
        table[space.choice(decisions).model_dump_json()] = float(rng.uniform(0.7, 2.0))
    table[start(space).model_dump_json()] = 1.0
    return space, table


@pytest.mark.parametrize("strategy", tuning.STRATEGIES)
def test_a_curve_falls_to_something_in_the_table(strategy: Strategy) -> None:
    space, table = reduced()
    curve = tuning.curve_of(space, table, strategy, seed=1, trials=40)
    assert len(curve) == 40 and curve[0] == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(curve))
    assert curve[-1] in table.values() and curve[-1] < 1.0
    assert tuning.curve_of(space, table, strategy, seed=1, trials=40) == curve


@pytest.mark.bench
def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cell = {"H": 8, "compression": 20.0, "batch": 1, "candidates": 9, "curves": {"random": [0.5, 0.9, 1.0]}}
    tuning.plot([cell, cell], tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
