"""The choice is measured against every candidate, and what the schedules weighed can be seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tvm_doping.bench import choice

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
