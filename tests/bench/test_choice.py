"""The choice is measured against every candidate, and what the schedules weighed can be seen."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tvm_doping.bench import choice
from tvm_doping.bench.cells import Axes, Group, Variant
from tvm_doping.errors import BenchError
from tvm_doping.targets import Target, resolve

pytestmark = [pytest.mark.bench, pytest.mark.slow]

TINY: dict[str, tuple[Any, ...]] = {
    "H": (64,),
    "compression": (10,),
    "pattern": ("block16",),
    "batch": (1,),
    "T": (2,),
    "threads": (1,),
}


def test_every_candidate_is_timed_beside_the_choice(tmp_path: Path) -> None:
    results = choice.run(tmp_path, axes=TINY, seconds=0.1, echo=lambda line: None)
    assert json.loads((tmp_path / "choice.json").read_text()) == json.loads(json.dumps(results))
    (cell,) = results["cells"]
    assert {"chosen", "csr", "sell16"} <= set(cell["us"])
    assert ("dense" in cell["us"]) == (cell["formats"] != "dense")
    assert cell["loss"] >= 1 and cell["us"][cell["best"]] == min(
        cell["us"].values(), key=lambda us: us["median"]
    )
    assert {"csr", "block16", "dense"} <= set(cell["predicted"])
    assert f"In {int(cell['loss'] <= choice.WITHIN)} of 1 cells" in (tmp_path / "choice.md").read_text()


def test_what_is_timed_is_chosen_for_the_caches_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[object] = []

    def compiled(H: int, variant: Variant | None, target: object, *rest: object, **options: object) -> None:
        found.append(target)
        raise BenchError("a size", "one", "none", "Try another.")

    monkeypatch.setattr("tvm_doping.bench.variants.compiled", compiled)
    choice.run(tmp_path, axes=TINY, echo=lambda line: None)
    assert found == [resolve("auto")]  # as `compile` does; the target that is named so may have others


def test_measured_cells_are_kept_and_those_of_another_machine_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count()

    def measured(group: Group, variant: Variant, target: Target, seconds: float) -> dict[str, Any]:
        cell = {name: getattr(group, name) for name in ("H", "batch", "T", "threads")}
        us = {"chosen": {"median": 1.0}, "call": next(calls)}
        cell |= {"target": target.name, "model": variant.name, "formats": "csr", "best": "chosen"}
        return {**cell, "loss": 1.0, "us": us}

    monkeypatch.setattr(choice, "_cell", measured)

    def run(axes: Axes, **changes: Any) -> list[int]:
        """Which call measured each cell."""
        results = choice.run(tmp_path, axes=axes, echo=lambda line: None, **changes)
        assert json.loads((tmp_path / "choice.json").read_text()) == results
        return [cell["us"]["call"] for cell in results["cells"]]

    assert run(TINY) == [0]
    assert run(TINY | {"compression": (5, 10)}) == [0, 1]  # in the order of their names
    assert run(TINY, resume=False) == [2, 1]
    assert run(TINY) == [2, 1]

    path = tmp_path / "choice.json"
    for key, value in {"cpu": "VIA Nano", "format_version": 1}.items():
        found = json.loads(path.read_text())
        (found["machine"] if key == "cpu" else found)[key] = value
        other = tmp_path / key
        other.mkdir()
        (other / "choice.json").write_text(json.dumps(found))
        with pytest.raises(BenchError, match="this machine" if key == "cpu" else key):
            choice.run(other, axes=TINY, echo=lambda line: None)
        assert json.loads((other / "choice.json").read_text()) == found
    assert next(calls) == 3  # nothing more was measured
