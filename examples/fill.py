"""How full the slots of each format are for the S of a trained run folder, in several orders of its rows, and what that gains.

    python examples/fill.py runs/small --out results/fill/lm-small.json
    taskset -c 1 python examples/fill.py runs/small --time --out results/fill/lm-small.json

A slot takes as long half empty as full. Fixed stripes of 32 columns are what perm32's sliding windows replaced, here to compare
with. No format stores columns in another order than theirs; two orders show what that would gain. With --time each S is also
multiplied with one vector in every order that a format of this machine can store, in turns in one run: microseconds, medians.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse as sp

from tvm_doping import models
from tvm_doping.sparsity.formats.perm import PERM32, Reach, count_slots
from tvm_doping.sparsity.formats.perm2x32 import Perm2x32
from tvm_doping.sparsity.formats.perm8 import Perm8

LANES, STRIPE = 16, 32
LOOK_UPS: dict[str, Reach] = {"perm8": Perm8.reach, "perm32": PERM32, "perm2x32": Perm2x32.reach}
# How a format is told to leave its rows as they come: sell16 then sorts 16 among each other, which changes no slot.
ORDERS = {
    "sell16, natural": ("sell16", {"window": LANES}),
    "sell16": ("sell16", {"window": 0}),
    **{
        f"{name}, {order}": (name, {"grouped": grouped})
        for name in LOOK_UPS
        for grouped, order in enumerate(("natural", "alike grouped"))
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="run folder, as `tvm-doping train` writes it")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--time", action="store_true", help="also time the products, on this machine")
    args = parser.parse_args()
    weights = {
        name: {"shape": list(w.S.shape), "nnz": int(w.S.nnz), "fill": fills(w.S)}
        for name, w in models.extract(models.load_model(args.run)).items()
    }
    if args.time:
        for name, w in models.extract(models.load_model(args.run)).items():
            weights[name]["us"] = times(w.S)
    for what, digits in (("fill", 2), ("us", 2)):
        if what in next(iter(weights.values())):
            orders = list(next(iter(weights.values()))[what])
            print(" | ".join([what, *orders]))
            for name, row in weights.items():
                print(" | ".join([name, *(f"{row[what][order]:.{digits}f}" for order in orders)]))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        fresh = args.out.with_suffix(".new")
        found = {"run": Path(args.run).name, "weights": weights}
        if args.time:
            from tvm_doping.bench.machine import describe

            found["machine"] = describe()
        fresh.write_text(json.dumps(found, indent=1) + "\n")
        os.replace(fresh, args.out)


def fills(S: sp.csr_array) -> dict[str, float]:
    """Nonzeros over the places of slots."""
    natural, by_length = np.arange(S.shape[0]), np.argsort(-np.diff(S.indptr), kind="stable")
    places = {
        "sell16, natural": LANES * longest(S, natural),
        "sell16": LANES * longest(S, by_length),
        "fixed stripes, natural": LANES * stripes(S, natural),
        "fixed stripes, by length": LANES * stripes(S, by_length),
    }
    for name, reach in LOOK_UPS.items():
        for grouped, order in enumerate(("natural", "alike grouped")):
            places[f"{name}, {order}"] = count_slots(S, grouped, reach) * reach.lanes * reach.each
        for order, columns in column_orders(S).items():
            moved = sp.csr_array(S[:, columns])
            places[f"{name}, alike grouped, columns {order}"] = (
                count_slots(moved, 1, reach) * reach.lanes * reach.each
            )
    return {name: round(S.nnz / max(1, count), 3) for name, count in places.items()}


def column_orders(S: sp.csr_array) -> dict[str, np.ndarray]:
    """What the units of the layer that the columns belong to could be renumbered to; the windows of look-ups then hold others."""
    counts = np.bincount(S.indices, minlength=S.shape[1])
    return {
        "shuffled": np.random.default_rng(0).permutation(S.shape[1]),
        "by entries": np.argsort(-counts, kind="stable"),
    }


def times(S: sp.csr_array, seconds: float = 5.0) -> dict[str, float]:
    """Microseconds of S x for one x, by the orders that this machine has kernels for; interleaved medians."""
    from tvm_doping import schedules, structures, targets
    from tvm_doping.bench.measure import interleave, summarise
    from tvm_doping.errors import ScheduleError

    w, target = structures.Doped(structures.Zero(S.shape), S), targets.resolve("auto")
    calls = {}
    for order, (name, params) in ORDERS.items():
        try:
            plan = schedules.choose_linear(w, target=target, force={"format": name})
        except ScheduleError:  # not on this machine
            continue
        product = replace(plan.product, params={**plan.product.params, **params})
        calls[order] = compiled(replace(plan, product=product), w, target)
    samples = interleave(calls, seconds=seconds)
    return {order: round(summarise(values)["median"], 3) for order, values in samples.items()}


def compiled(plan: Any, w: Any, target: Any) -> Callable[[], object]:
    """A call of the linear layer w by its plan, with a vector of its own."""
    import tvm

    from tvm_doping.arrays import aligned_copy, aligned_zeros
    from tvm_doping.kernels import linear
    from tvm_doping.kernels.lowering import TIR_PIPELINE

    m, n = w.shape
    arrays = linear.pack(plan, w, np.zeros(m, "float32"))
    module = tvm.IRModule({"f": linear.prim_func(plan, arrays, "f")})
    function = tvm.compile(module, target=target.tvm(), tir_pipeline=TIR_PIPELINE).mod["f"]
    x = np.random.default_rng(0).standard_normal((1, n)).astype("float32")
    y = aligned_zeros((1, m), "float32")
    tensors = [tvm.runtime.from_dlpack(a) for a in (*map(aligned_copy, (x, *arrays.values())), y)]
    function(*tensors)
    wanted = w.S @ x[0]
    if np.abs(y[0] - wanted).max() > 1e-5 * max(1.0, float(np.abs(wanted).max())):
        raise AssertionError(f"wrong product of {plan.product}")
    return lambda: function(*tensors)


def longest(S: sp.csr_array, order: np.ndarray) -> int:
    """Slots where each group of rows is as long as its longest row."""
    return int(grouped(np.diff(S.indptr)[order][:, None]).max(axis=1).sum())


def stripes(S: sp.csr_array, order: np.ndarray) -> int:
    """Slots where each group is that, stripe by stripe of the columns."""
    counts = np.zeros((S.shape[0], -(-S.shape[1] // STRIPE)), np.int64)
    np.add.at(counts, (np.repeat(np.arange(S.shape[0]), np.diff(S.indptr)), S.indices // STRIPE), 1)
    return int(grouped(counts[order]).max(axis=1).sum())


def grouped(counts: np.ndarray) -> np.ndarray:
    """Rows in groups of 16: (groups, 16, columns)."""
    padded = np.pad(counts, ((0, -len(counts) % LANES), (0, 0)))
    return padded.reshape(-1, LANES, counts.shape[1])


if __name__ == "__main__":
    main()
