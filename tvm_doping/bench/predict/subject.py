"""Which kernels a model's LSTM layers run as on a target: plans, packed arrays and functions, without building a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tvm_doping import schedules
from tvm_doping.bench.predict.program import Kernel
from tvm_doping.bench.subject import subject_of
from tvm_doping.kernels import LstmPlan, lstm
from tvm_doping.models.doping import doped_weights, original
from tvm_doping.sparsity.values import Precision
from tvm_doping.structures import Dense
from tvm_doping.targets import Target


def kernels_of(
    model: torch.nn.Module,
    target: Target,
    *,
    steps: int,
    batch: int,
    format: str | None = None,
    precision: Precision = "exact",
) -> list[Kernel]:
    """One kernel a layer, with arguments for a call of T = steps and N = batch.

    format: of S, "dense" for the weights multiplied out, None for what the schedules choose.
    """
    subject, module = subject_of(model)
    structures = {
        name: weight.structure(original(owner, name)) for _, owner, name, weight in doped_weights(module)
    }
    rng = np.random.default_rng(0)
    kernels = []
    for index, layer in enumerate(subject.layers):
        weights = [
            Dense(dense) if format == "dense" else structures.get(f"weight_{short}_l{index}", Dense(dense))
            for short, dense in (("ih", layer.w_ih), ("hh", layer.w_hh))
        ]
        plan = schedules.choose_lstm(
            weights[0],
            weights[1],
            reverse=False,
            target=target,
            batch=batch,
            steps=steps,
            precision=precision,
            force={"format": format} if format not in (None, "dense") else None,
        )
        packed = lstm.pack(plan, weights[0], weights[1], layer.b_ih + layer.b_hh)
        x = rng.uniform(-1, 1, (steps, batch, layer.inputs)).astype("float32")
        kernels.append(_kernel(f"layer{index}", plan, packed, x))
    return kernels


def _kernel(name: str, plan: LstmPlan, packed: dict[str, np.ndarray], x: np.ndarray) -> Kernel:
    steps, batch, _ = x.shape
    state = {key: np.zeros((batch, plan.hidden), "float32") for key in ("h0", "c0", "h", "c")}
    arguments: dict[str, Any] = {"x": x, "h0": state["h0"], "c0": state["c0"], **packed}
    arguments |= {
        "y": np.zeros((steps, batch, plan.hidden), "float32"), "h": state["h"], "c": state["c"],
    }  # fmt: skip
    return Kernel(
        name=name, function=lstm.prim_func(plan, packed, name), arguments=arguments, weights=tuple(packed)
    )


def formats_of(kernels: Sequence[Kernel]) -> str:
    """The formats of the kernels' products, as reports name them."""
    names: set[str] = set()
    for kernel in kernels:
        if isinstance(kernel.function, Path):
            names.add("int8")
        else:
            names.update(str(kernel.function.attrs["doping.format"]).split(","))
    return ", ".join(sorted("dense" if name == "None" else name for name in names))


def gemv_int8(model: torch.nn.Module) -> list[Kernel]:
    """A step of one stream: the dense products of all layers in int8; no gates, no quantisation: less than an int8 LSTM does."""
    subject, _ = subject_of(model)
    rng = np.random.default_rng(0)
    rows = sum(4 * layer.hidden for layer in subject.layers)
    columns = max(layer.inputs + layer.hidden for layer in subject.layers)
    columns += -columns % 16
    arguments = {
        "W": rng.integers(-127, 128, (rows, columns), "int8"),
        "x": rng.integers(-127, 128, (columns,), "int8"),
        "y": np.zeros((rows,), "int32"),
    }
    source = Path(__file__).with_name("gemv_int8.c")
    return [Kernel(name="gemv_int8", function=source, arguments=arguments, weights=("W",))]
