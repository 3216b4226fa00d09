"""Records to test with."""

from __future__ import annotations

from typing import Any

from tvm_doping.records import Choice, Device, Key, Numbers, Record, Way, Weight

DEVICE = Device(target="x86-64-v3", cpu="Some CPU (R)", cores=2, l1=32768, l2=524288, l3=2**25)


def weight(**changes: Any) -> Weight:
    return Weight(
        **{
            "rows": 256,
            "columns": 64,
            "kind": "zero",
            "nnz": 800,
            "pattern": "unstructured",
            "fill": 0.8,
            **changes,
        }
    )


def key(**changes: Any) -> Key:
    weights = {name: weight(**changes.pop("weight", {})) for name in ("input", "recurrent")}
    return Key(**{"weights": weights, **changes})


def record(us: float = 10.0, made: Key | None = None, **changes: Any) -> Record:
    ways = {name: Way(format="csr", params={"multiple": 2}) for name in ("input", "recurrent")}
    choice = Choice(
        ways=ways, numbers=Numbers(lanes=8, registers=16, tile=8, tile_from=2, steps=16, steps_from=3)
    )
    fields = {
        "key": made or key(),
        "choice": choice,
        "us": {1: us, 35: 20 * us},
        "heuristic_us": {1: 12.0, 35: 200.0},
        "trials": 64,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Record(**{**fields, **changes})
