"""How full the slots of each format are for the S of a trained run folder, in several orders of its rows.

    python examples/fill.py runs/small --out results/fill/lm-small.json

A slot of 16 lanes takes as long half empty as full. Fixed stripes of 32 columns are what perm32's sliding windows replaced; they
are computed here to compare with, no format stores them.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
from scipy import sparse as sp

from tvm_doping import models
from tvm_doping.sparsity.formats.perm import count_slots

LANES, STRIPE = 16, 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="run folder, as `tvm-doping train` writes it")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    weights = {
        name: {"shape": list(w.S.shape), "nnz": int(w.S.nnz), "fill": fills(w.S)}
        for name, w in models.extract(models.load_model(args.run)).items()
    }
    orders = list(next(iter(weights.values()))["fill"])
    print(" | ".join(["weight", *orders]))
    for name, row in weights.items():
        print(" | ".join([name, *(f"{row['fill'][order]:.2f}" for order in orders)]))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        fresh = args.out.with_suffix(".new")
        fresh.write_text(json.dumps({"run": Path(args.run).name, "weights": weights}, indent=1) + "\n")
        os.replace(fresh, args.out)


def fills(S: sp.csr_array) -> dict[str, float]:
    """Nonzeros over lanes of slots."""
    natural, by_length = np.arange(S.shape[0]), np.argsort(-np.diff(S.indptr), kind="stable")
    slots = {
        "sell16, natural": longest(S, natural),
        "sell16": longest(S, by_length),
        "fixed stripes, natural": stripes(S, natural),
        "fixed stripes, by length": stripes(S, by_length),
        "perm32, natural": count_slots(S, 0),
        "perm32, alike grouped": count_slots(S, 1),
    }
    return {name: round(S.nnz / LANES / max(1, count), 3) for name, count in slots.items()}


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
