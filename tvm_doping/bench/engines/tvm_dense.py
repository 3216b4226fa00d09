"""A dense build of the same model by TVM: this compiler with its fused kernels, all weights left dense.

Not TVM's stock import of an nn.LSTM: that is unrolled over T, and its default CPU schedules leave the product
of a matrix and a vector scalar (two layers of H = 650, T = 1: 15 ms a call where this takes under 1).
"""

from __future__ import annotations

from tvm_doping.bench.engines.doped import Doped
from tvm_doping.bench.subject import Subject, outputs_alone
from tvm_doping.build import compile


def engine(subject: Subject, *, threads: int, precision: str) -> Doped:
    """The subject, no structure recovered."""
    bundle = compile(outputs_alone(subject.module()), threads=threads, force={"structure": "dense"})
    return Doped(bundle, threads)
