"""A session over very many steps: its memory, its distance from PyTorch, and sessions in threads of one process.

    python examples/long_run.py                    # a million steps, then 8 sessions in 8 threads
    python examples/long_run.py --steps 20000

The model is a doped language model (embedding, two LSTM layers, output) with random weights and random tokens. PyTorch computes the
same tokens in pieces of 1000 steps, its state carried on. Ends with 1 where memory grows by more than 4 MiB, the distance exceeds
the tolerance, or a thread's results differ by a bit from those of a session alone.
"""

from __future__ import annotations

import argparse
import sys
import threading
from typing import Any

import numpy as np
import psutil
import torch

import tvm_doping
from tvm_doping.models import LanguageModel, dope

VOCABULARY, PIECE = 200, 1000


def long_run(steps: int, threads: int, hidden: int = 64) -> dict[str, Any]:
    """growth: bytes of resident memory between the first tenth and the end; differences: the largest |logit - PyTorch's| in each
    tenth; allowed: what the tolerance allows; same: whether sessions in threads gave the bits of one alone.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LanguageModel(vocab=VOCABULARY, embedding=hidden, hidden=hidden, layers=2)
    dope(model, compression=6, modules=["lstm.*", "output"]).eval()
    bundle = tvm_doping.compile(model)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (steps, 1))
    differences, largest, memory = [0.0] * 10, 1.0, []
    state = None
    got = np.empty((PIECE, 1, VOCABULARY), np.float32)
    with bundle.session() as session, torch.no_grad():
        for begin in range(0, steps, PIECE):
            piece = tokens[begin : begin + PIECE]
            for t, token in enumerate(piece):
                got[t] = session.step(token)
            wanted, state = model(torch.from_numpy(piece), state)
            reference = wanted.numpy()
            largest = max(largest, float(np.abs(reference).max()))
            tenth = 10 * begin // steps
            error = float(np.abs(got[: len(piece)] - reference).max())
            differences[tenth] = max(differences[tenth], error)
            memory.append(psutil.Process().memory_info().rss)
    return {
        "growth": memory[-1] - memory[len(memory) // 10],
        "differences": differences,
        "allowed": bundle.manifest.tolerance * largest,
        "same": _in_threads(bundle, tokens[: max(1, steps // 20)], threads),
    }


def _in_threads(bundle: Any, tokens: np.ndarray, threads: int) -> bool:
    """Whether sessions that run at the same time, each on other tokens, give what each gives alone."""
    ways = [np.roll(tokens, 17 * i) for i in range(threads)]
    results: list[Any] = [None] * threads

    def run(i: int) -> None:
        with bundle.session() as session:
            total = np.zeros((1, VOCABULARY), np.float64)
            for token in ways[i]:
                total += session.step(token)
            results[i] = (total, session.state)

    workers = [threading.Thread(target=run, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    together = list(results)
    for i in range(threads):
        run(i)
    return all(
        np.array_equal(a[0], b[0]) and all(np.array_equal(a[1][name], b[1][name]) for name in a[1])
        for a, b in zip(together, results, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=64)
    args = parser.parse_args()
    found = long_run(args.steps, args.threads, args.hidden)
    tenths = " ".join(f"{error:.2g}" for error in found["differences"])
    print(f"{args.steps} steps: largest difference from PyTorch in each tenth {tenths}")
    print(f"allowed {found['allowed']:.2g}; resident memory grew by {found['growth'] / 1024:.0f} KiB")
    print(
        f"{args.threads} sessions in {args.threads} threads: {'the same bits' if found['same'] else 'DIFFER'}"
    )
    good = found["growth"] <= 4 * 2**20 and max(found["differences"]) <= found["allowed"] and found["same"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
