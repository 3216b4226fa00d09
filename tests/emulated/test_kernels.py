"""Every kernel on every Arm target, emulated: all of a target's in one library, run in one process, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from tests.emulated import emulator
from tests.emulated.emulator import CORES, Emulator
from tests.kernels.conftest import HIDDEN, INPUTS, oracle, sparse_matrix, structure
from tvm_doping import cross, schedules, structures
from tvm_doping.kernels import LinearPlan, LstmPlan, linear, lstm, product
from tvm_doping.kernels.lowering import TIR_PIPELINE
from tvm_doping.kernels.plan import Product
from tvm_doping.kernels.pool import export
from tvm_doping.sparsity.dots import DOTS
from tvm_doping.targets import TARGETS, Target

pytestmark = [emulator.pytestmark, pytest.mark.slow]

FORMATS = ("csr", "sell16", "block4", "block8", "block16")
FAMILIES = ("kronecker", "low_rank", "hybrid", "dense", "zero")
VALUES = ("fp16", "bf16", "int8")
# Streams: one; some beside each other that fill no tile; tiles and a rest. Steps: one; tiles of steps and a rest.
ROWS, SHAPES = (1, 3, 21), ((1, 1), (11, 1), (2, 7))
NEAR = {"bfdot": 2e-3, "smmla": 1e-2, "sdot": 1e-2, "fmlal": 3e-4, "fmla": 3e-4}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kernel: the operation, what its weights are, and how they are stored; batch: what the schedule is asked for."""

    operation: str
    family: str = "kronecker"
    format: str | None = None
    values: Any = "fp32"
    batch: int = 1
    reverse: bool = False
    dot: Any = ""

    @property
    def name(self) -> str:
        way = "_r" if self.reverse else ""
        values = self.dot or self.values
        return f"{self.operation}_{self.family}_{self.format or 'kept'}_{values}_{self.batch}{way}"

    def plan(self, target: Target) -> tuple[LstmPlan | LinearPlan, tuple[Any, ...]]:
        """The plan and the weights."""
        force = {"format": self.format} if self.format else {"structure": "kept"}
        common: dict[str, Any] = {"target": target, "batch": self.batch, "force": force}
        rng = np.random.default_rng(len(self.name))
        density = 0.25 if self.format else 0.1
        columns = (INPUTS, HIDDEN) if self.operation == "lstm" else (HIDDEN,)
        w = tuple(
            structures.Doped(
                structure(rng, self.family, 4 * HIDDEN, n), sparse_matrix(rng, 4 * HIDDEN, n, density)
            )
            for n in columns
        )
        if self.operation == "linear":
            plan = schedules.choose_linear(*w, **common)
            return replace(plan, product=self._stored(plan.product)), w
        layer = schedules.choose_lstm(*w, reverse=self.reverse, **common)
        ih, hh = (self._stored(p) for p in (layer.input, layer.recurrent))
        return replace(layer, input=ih, recurrent=hh), w

    def _stored(self, product: Product) -> Product:
        if not self.dot:
            return replace(product, values=self.values)
        return replace(product, values=DOTS[self.dot].values, dot=self.dot)


def cases(target: str) -> Iterator[Case]:
    """All kernels on one core of each instruction set; on the others those whose code its schedule numbers may change."""
    yield from (Case(operation="linear", format=name) for name in FORMATS)
    yield from (Case(operation="lstm", format=name) for name in ("csr", "sell16"))
    yield from _dots(target)
    if target not in ("cortex-a72", "neoverse-v1"):
        return
    yield from (Case(operation="linear", format=name, values=v) for name in FORMATS for v in VALUES)
    yield from (Case(operation="linear", family=name) for name in FAMILIES)
    yield from (
        Case(operation="linear", family=name, values=v) for name in ("low_rank", "dense") for v in VALUES
    )
    yield from (Case(operation="linear", format=name, batch=16) for name in ("csr", "sell16", "block8"))
    yield from (Case(operation="lstm", format=name) for name in ("block4", "block8", "block16"))
    yield from (Case(operation="lstm", family=name, reverse=True) for name in FAMILIES)


def _dots(target: str) -> Iterator[Case]:
    """Every dot product that a core has, on one of each instruction set: single streams, and tiles of 4, 8 and 16."""
    for name, dot in DOTS.items():
        if target not in ("cortex-a76", "neoverse-v1") or not TARGETS[target].has(dot.feature):
            continue
        yield Case(operation="lstm", family="dense", dot=name)
        yield from (Case(operation="linear", family="dense", dot=name, batch=batch) for batch in (1, 5, 16))
        yield Case(operation="linear", family="hybrid", dot=name)
        yield from (Case(operation="linear", family="zero", format=f, dot=name) for f in dot.formats)
        if dot.formats:
            yield Case(operation="linear", family="zero", format="block16", dot=name, batch=16)


def prepared(target: str, folder: Path) -> tuple[Emulator, dict[str, list[np.ndarray]]]:
    """The kernels of a target in one library; what each is to give, by job."""
    machine, expected = TARGETS[target], {}
    emulated, functions, jobs = Emulator(target, folder), {}, []
    rng = np.random.default_rng(7)
    library = folder / "kernels.so"

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype("float32")

    for case in cases(target):
        plan, w = case.plan(machine)
        bias = drawn(4 * HIDDEN) * np.float32(0.3)
        room: Any = lstm if isinstance(plan, LstmPlan) else linear
        arrays = room.pack(plan, *w, bias)
        functions[case.name] = room.prim_func(plan, arrays, case.name)
        exact = _rounded(plan, arrays)
        if isinstance(plan, LstmPlan):
            for steps, batch in SHAPES:
                x, h, c = drawn(steps, batch, INPUTS), drawn(batch, HIDDEN), drawn(batch, HIDDEN)
                wanted = oracle(plan, exact, bias, x, h, c)
                if case.dot:
                    wanted = list(lstm.reference(plan, arrays, x, h, c))
                jobs.append((case.name, [x, h, c], arrays, wanted))
        else:
            for rows in ROWS:
                x = drawn(rows, HIDDEN)
                wanted = [x.astype("float64") @ exact[0].to_dense().T.astype("float64") + bias]
                # with inputs that are rounded: tests/sparsity and tests/kernels hold that against an oracle
                jobs.append(
                    (case.name, [x], arrays, linear.reference(plan, arrays, x) if case.dot else wanted)
                )
    for at, (function, given, arrays, wanted) in enumerate(jobs):
        name = f"{at}.{function}.{'x'.join(map(str, given[0].shape[:-1]))}"
        outputs = [np.zeros(array.shape, "float32") for array in wanted]
        emulated.add(
            name,
            [*given, *arrays.values(), *outputs],
            kind="kernel",
            library=str(library),
            function=function,
            outputs=len(outputs),
        )
        expected[name] = wanted
    mod = tvm.IRModule(functions)
    executable = tvm.compile(mod, target=machine.tvm(), tir_pipeline=TIR_PIPELINE)
    export(executable, mod, library, cross.compiler(machine))
    return emulated, expected


def _rounded(plan: LstmPlan | LinearPlan, arrays: dict[str, np.ndarray]) -> Any:
    """The weights as they are stored, in the order of the plan's products; tests/sparsity holds that against an oracle."""
    prefixes = {"input": "ih.", "recurrent": "hh.", "product": ""}
    return tuple(
        structures.Dense(product.to_dense(getattr(plan, name), product.select(arrays, prefixes[name])))
        for name in plan.products
    )


@pytest.mark.parametrize("target", CORES)
def test_every_kernel(target: str, tmp_path: Path) -> None:
    emulated, expected = prepared(target, tmp_path)
    results = emulated.run()
    assert str(results["auto"]) == target
    for name, wanted in expected.items():
        # of an input that differs in its last bit the other neighbour may be taken, and the next step sees that
        flips = [near for dot, near in NEAR.items() if f"_{dot}_" in name and ".lstm" in name]
        near = flips[0] if flips else 3e-6
        for i, true in enumerate(wanted):
            np.testing.assert_allclose(results[f"{name}/{i}"], true, atol=near, err_msg=f"{target}: {name}")
