"""LSTM layers on the emulated GPU against float64: what TVM's CUDA runtime runs, whichever thread comes first."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import tvm
import tvm_ffi

from tests.cuda.conftest import GRID, compiled, doped, plan_of, run
from tests.cuda.emulation import ORDERS, Driver, to_gpu
from tests.kernels.conftest import HIDDEN, INPUTS, oracle, sparse_matrix
from tvm_doping import structures
from tvm_doping._tvm import tirx
from tvm_doping.kernels.cuda import parts
from tvm_doping.kernels.cuda.lstm import cut_of, pack, prim_func, to_dense
from tvm_doping.kernels.lstm import reference
from tvm_doping.kernels.product import select
from tvm_doping.kernels.trees import found

# A step, and one of two streams; a sequence; tiles of one step; full and filled-up tiles over steps.
SHAPES = [(1, 1), (1, 2), (5, 2), (1, 4), (1, 37), (3, 37)]


def check(
    emulated: Driver, w: tuple[Any, Any], plan: Any, shapes: list[tuple[int, int]], orders: list[str]
) -> None:
    rng = np.random.default_rng(7)
    bias = rng.standard_normal(4 * plan.hidden).astype("float32") * np.float32(0.3)
    arrays = pack(plan, *w, bias)
    w_ih, w_hh, b = to_dense(plan, arrays)
    np.testing.assert_array_equal(b, bias)
    if plan.input.values == plan.recurrent.values == "fp32":
        for packed, weight in ((w_ih, w[0]), (w_hh, w[1])):
            np.testing.assert_allclose(packed, weight.to_dense(), atol=1e-6)
    stored = (structures.Dense(w_ih), structures.Dense(w_hh))
    function = compiled(plan, arrays, emulated)
    for order in orders:
        emulated.order(order)
        for steps, batch in shapes:
            x = rng.standard_normal((steps, batch, plan.inputs)).astype("float32")
            h, c = (rng.standard_normal((batch, plan.hidden)).astype("float32") for _ in range(2))
            got = run(function, plan, arrays, x, h, c)
            for name, a, true in zip("yhc", got, oracle(plan, stored, bias, x, h, c), strict=True):
                np.testing.assert_allclose(
                    a, true, atol=3e-6, err_msg=f"{name}, T={steps}, N={batch}, {order}"
                )


@pytest.mark.parametrize("reverse", [False, True])
def test_doped_layer_in_every_order_of_threads(emulated: Driver, reverse: bool) -> None:
    w = doped("kronecker", 0.25)
    check(emulated, w, plan_of(w, reverse=reverse), SHAPES, list(ORDERS))


@pytest.mark.parametrize("batch", [64, 128, 256])
def test_many_streams(emulated: Driver, batch: int) -> None:
    """Two to eight tiles that each block takes one after the other."""
    w = doped("kronecker", 0.25)
    check(emulated, w, plan_of(w), [(2, batch)], ["backward"])


LOW = [
    ("low_rank", 0.25, "fp32", GRID),  # a row of V a block
    ("low_rank", 0.0, "bf16", replace(GRID, shared=0)),  # nothing but V and U, from global memory
    ("hybrid", 0.25, "int8", GRID),  # several rows of [D; V] a block
]


@pytest.mark.parametrize(("family", "density", "values", "grid"), LOW)
def test_low_rank_and_hybrid_weights_are_kept(
    emulated: Driver, family: str, density: float, values: str, grid: Any
) -> None:
    w = doped(family, density)
    plan = plan_of(w, values=values, grid=grid)
    assert plan.recurrent.part.kind == family
    check(emulated, w, plan, [(1, 2), (4, 2), (1, 37), (2, 37)], ["warp by warp", "shuffled"])


@pytest.mark.parametrize(
    ("family", "values", "close"), [("kronecker", "fp16", 2e-5), ("hybrid", "bf16", 1.5e-4)]
)
def test_tensor_cores_multiply_rounded_z_and_sum_in_fp32(
    emulated: Driver, family: str, values: str, close: float
) -> None:
    """For one stream and for many alike; `close` is a number of z that is rounded the other way."""
    w = doped(family, 0.25)
    plan = plan_of(w, values=values, format="mma16")
    rng = np.random.default_rng(7)
    bias = rng.standard_normal(4 * HIDDEN).astype("float32") * np.float32(0.3)
    arrays = pack(plan, *w, bias)
    stored = [structures.Doped(structures.Dense(d), s) for d, s in _bases(plan, arrays, w)]
    function = compiled(plan, arrays, emulated)
    emulated.order("warp by warp")
    for steps, batch in [(1, 2), (4, 2), (1, 37), (2, 37)]:
        x = rng.standard_normal((steps, batch, INPUTS)).astype("float32")
        h, c = (rng.standard_normal((batch, HIDDEN)).astype("float32") for _ in range(2))
        got = run(function, plan, arrays, x, h, c)
        wanted = rounding_oracle(stored, values, bias, x, h, c)
        for name, a, true in zip("yhc", got, wanted, strict=True):
            np.testing.assert_allclose(a, true, atol=close, err_msg=f"{name}, T={steps}, N={batch}")
            # by far most of them as if in float64: no sum is rounded to 16 bits
            assert np.quantile(np.abs(a - true), 0.8) < 3e-6
        unrounded = oracle(plan, tuple(stored), bias, x, h, c)  # type: ignore[arg-type]
        off, rounded_off = (np.abs(got[0] - y[0]).mean() for y in (unrounded, wanted))
        assert off > 5 * rounded_off
        for a, b in zip(got, reference(plan, arrays, x, h, c), strict=True):
            np.testing.assert_allclose(a, b, atol=close, err_msg="the reference")


def _bases(plan: Any, arrays: Any, w: tuple[Any, Any]) -> Any:
    """(what is not S, dense and as it is stored; S as it is stored) of both weights."""
    for (name, prefix), weight in zip((("input", "ih."), ("recurrent", "hh.")), w, strict=True):
        product = getattr(plan, name)
        base = parts.to_dense(replace(product, sparse=None), select(arrays, prefix), cut_of(plan))
        yield base, type(weight.S)(to_type(weight.S.toarray(), product.values))


def to_type(a: Any, values: str) -> np.ndarray:
    """Rounded by torch."""
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[values]
    return torch.from_numpy(np.asarray(a, "float32")).to(kind).float().numpy()


def rounding_oracle(
    w: list[Any], values: str, bias: np.ndarray, x: np.ndarray, h: np.ndarray, c: np.ndarray
) -> list[np.ndarray]:
    """The layer in float64, where S multiplies x and h rounded to 16 bits."""
    (base_ih, s_ih), (base_hh, s_hh) = (
        (d.base.to_dense().astype("float64"), d.S.toarray().astype("float64")) for d in w
    )
    h, c = h.astype("float64"), c.astype("float64")
    y = np.empty((*x.shape[:2], HIDDEN))
    for t in range(len(x)):
        gates = bias + x[t] @ base_ih.T + h @ base_hh.T
        gates = gates + to_type(x[t], values) @ s_ih.T + to_type(h, values) @ s_hh.T
        i, f, g, o = np.split(gates, 4, axis=1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = y[t] = np.tanh(c) / (1 + np.exp(-o))
    return [y, h, c]


@pytest.mark.parametrize("values", ["fp16", "bf16", "int8"])
def test_narrow_values_are_summed_in_fp32(emulated: Driver, values: str) -> None:
    w = doped("kronecker", 0.25)
    check(emulated, w, plan_of(w, values=values), [(2, 1), (2, 5)], ["backward"])


@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_dense_weights(emulated: Driver, values: str) -> None:
    w = tuple(structures.Dense(d.to_dense()) for d in doped("kronecker", 0.25))
    check(emulated, w, plan_of(w, values=values), [(1, 1), (3, 2), (2, 5)], ["backward"])  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["left", "right"])
def test_kronecker_alone_in_both_orders(emulated: Driver, order: str) -> None:
    rng = np.random.default_rng(3)
    shapes = ((4, 13), (13, 1)) if order == "left" else ((52, 1), (1, 13))
    factors = [(rng.standard_normal(s) * 0.4).astype("float32") for s in shapes]
    ih = [(rng.standard_normal(s) * 0.4).astype("float32") for s in ((26, 3), (2, 4))]
    empty = [sparse_matrix(rng, 52, n, 0.0) for n in (INPUTS, HIDDEN)]
    w = tuple(
        structures.Doped(structures.Kronecker(*f), s) for f, s in zip((ih, factors), empty, strict=True)
    )
    check(emulated, w, plan_of(w, order=order), [(1, 1), (3, 2), (2, 5)], ["forward", "backward"])  # type: ignore[arg-type]


def test_pruned_weights_of_uneven_rows_in_one_block_and_from_global_memory(emulated: Driver) -> None:
    """All units in one block, and no room to keep the weights in."""
    w = doped("zero", 0.3)
    grid = replace(GRID, parts=1, shared=0)
    check(emulated, w, plan_of(w, grid=grid), [(1, 2), (4, 1), (2, 33)], ["shuffled"])


def test_nan_stays_nan(emulated: Driver) -> None:
    """A GPU's min and max drop a NaN, which the clamps of the activations must not."""
    w = doped("kronecker", 0.25)
    plan = plan_of(w)
    arrays = pack(plan, *w, np.zeros(4 * HIDDEN, "float32"))
    zeros = np.zeros((1, HIDDEN), "float32")
    x = np.full((1, 1, INPUTS), np.nan, "float32")
    assert np.isnan(run(compiled(plan, arrays, emulated), plan, arrays, x, zeros, zeros)[0]).all()


def test_one_launch_a_step_and_one_for_a_sequence(emulated: Driver) -> None:
    w = doped("kronecker", 0.25)
    plan = plan_of(w)
    arrays = pack(plan, *w, np.zeros(4 * HIDDEN, "float32"))
    function = compiled(plan, arrays, emulated)
    for steps, batch, launches, cooperative in ((1, 1, 1, 0), (9, 1, 3, 1), (1, 40, 3, 0), (4, 40, 4, 1)):
        emulated.log()
        run(
            function,
            plan,
            arrays,
            *(np.zeros(s, "float32") for s in ((steps, batch, INPUTS), (batch, HIDDEN), (batch, HIDDEN))),
        )
        log = emulated.log()
        assert (len(log), sum("cooperative" in line for line in log)) == (launches, cooperative), log


def test_a_step_is_captured_and_replayed_as_a_graph(emulated: Driver) -> None:
    """One launch, no memory from the host: what a CUDA graph may hold."""
    w = doped("kronecker", 0.25)
    plan = plan_of(w)
    bias = np.zeros(4 * HIDDEN, "float32")
    arrays = pack(plan, *w, bias)
    function, body = compiled(plan, arrays, emulated), prim_func(plan, arrays).body
    outer = found(body, tirx.IfThenElse)[-1]  # after all within
    inner = found(outer.then_case, tirx.IfThenElse)[-1]
    assert [str(choice.condition) for choice in (outer, inner)] == [
        "batch < T.int64(4)",
        "steps == T.int64(1)",
    ]
    few, step = outer.then_case, inner.then_case
    assert {a.buffer.scope() for a in found(step, tirx.AllocBuffer)} == {"shared.dyn", "local"}
    assert "global" in {a.buffer.scope() for a in found(few, tirx.AllocBuffer)}, "a sequence has workspace"

    rng, cuda = np.random.default_rng(0), emulated.library
    shapes = ((1, 1, INPUTS), (1, HIDDEN), (1, HIDDEN))
    x, h, c = (rng.standard_normal(shape).astype("float32") for shape in shapes)
    on_gpu = [to_gpu(a) for a in (x, h, c)]
    weights, outputs = (
        [to_gpu(a) for a in arrays.values()],
        [to_gpu(np.zeros_like(a)) for a in (h[None], h, c)],
    )
    stream, graph, replay = (ctypes.c_void_p() for _ in range(3))
    assert cuda.cudaStreamCreate(ctypes.byref(stream)) == 0
    emulated.log()
    with tvm_ffi.use_raw_stream(tvm.cuda(0), stream.value or 0):
        assert cuda.cudaStreamBeginCapture(stream, 0) == 0
        function(*on_gpu, *weights, *outputs)
        assert cuda.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0
    assert len(emulated.log()) == 1 and not outputs[0].numpy().any(), "captured, not run"
    assert cuda.cudaGraphInstantiate(ctypes.byref(replay), graph, ctypes.c_ulonglong(0)) == 0
    stored = tuple(structures.Dense(a) for a in to_dense(plan, arrays)[:2])
    for _ in range(2):
        assert cuda.cudaGraphLaunch(replay, stream) == 0
        wanted = oracle(plan, stored, bias, x, h, c)  # type: ignore[arg-type]
        for got, true in zip(outputs, wanted, strict=True):
            np.testing.assert_allclose(got.numpy(), true, atol=3e-6)
        x += np.float32(0.1)  # the same memory with another input
        on_gpu[0].copyfrom(x)
