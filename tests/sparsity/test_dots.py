"""What a dot product rounds and sums, held against torch, NumPy's own types, and sums written out one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.sparsity.test_formats import random_s
from tvm_doping.errors import InvalidInput
from tvm_doping.sparsity import FORMATS, matvec, pack, unpack
from tvm_doping.sparsity.dots import DOTS, product, round_inputs, runs


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def test_inputs_are_rounded_as_torch_rounds_them() -> None:
    z = drawn(3, 5, 40) * 100
    there = torch.from_numpy(z)
    np.testing.assert_array_equal(round_inputs(z, "bf16"), there.to(torch.bfloat16).float().numpy())
    np.testing.assert_array_equal(round_inputs(z, "fp16"), there.half().float().numpy())
    np.testing.assert_array_equal(round_inputs(z, "fp32"), z)
    # dynamic quantisation of a row: torch's, symmetric, with a scale of its own for each
    for row, got in zip(z.reshape(-1, 40), round_inputs(z, "int8").reshape(-1, 40), strict=True):
        scale = float(np.abs(row).max() / np.float32(127))
        quantised = torch.fake_quantize_per_tensor_affine(torch.from_numpy(row), scale, 0, -127, 127)
        np.testing.assert_allclose(got, quantised.numpy(), rtol=1e-6)


def test_int8_of_nothing_and_of_what_is_no_number() -> None:
    z = np.zeros((4, 6), "float32")
    z[1, 2], z[2, 3], z[3, 4] = np.nan, np.inf, 1e-35
    got = round_inputs(z, "int8")
    np.testing.assert_array_equal(got[[0, 3]], 0)
    assert np.isnan(got[[1, 2]]).all()
    assert round_inputs(np.zeros((2, 0), "float32"), "int8").shape == (2, 0)


@pytest.mark.parametrize("name", DOTS)
def test_products(name: str) -> None:
    dot = DOTS[name]
    W, z = drawn(6, 53).astype("float16").astype("float32"), drawn(2, 53)
    got, r = product(dot, W, z), round_inputs(z, dot.values)
    if not dot.terms:
        np.testing.assert_allclose(got, r.astype("float64") @ W.T.astype("float64"), atol=1e-5)
        return
    for i, row in enumerate(W):
        for j, x in enumerate(r):
            total = np.float32(0)
            for first in range(0, 53, dot.terms):
                short = np.float16(0)
                for a, b in zip(row[first : first + dot.terms], x[first : first + dot.terms], strict=True):
                    short = np.float16(np.float64(short) + np.float64(a) * np.float64(b))
                total += np.float32(short)
            np.testing.assert_allclose(got[j, i], total, rtol=1e-6)
    assert np.abs(got - r @ W.T).max() > 0


def test_runs_may_be_empty_and_end_anywhere() -> None:
    dot = replace(DOTS["fmla"], terms=4)
    columns, z = np.ones((11, 3), "float32"), np.ones((2, 11), "float32")
    got = runs(dot, columns, z, np.array([0, 5, 5, 11]))
    np.testing.assert_array_equal(got, np.broadcast_to(np.array([5, 0, 6], "float32")[:, None], (2, 3, 3)))


@pytest.mark.parametrize("each", [2, 4])
@pytest.mark.parametrize("name", ["block4", "block16"])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.6])
def test_blocks_side_by_side(name: str, each: int, density: float) -> None:
    """The same S in groups: as many values as fill them up, in columns that the band has."""
    S, x = random_s(50, 70, density), drawn(2, 70).astype("float64")
    packed, plain = pack(name, S, each=each), pack(name, S)
    a, b = packed.arrays, FORMATS[name].rows  # type: ignore[attr-defined]
    groups = int(a["block_ptr"][-1])
    assert a["values"].shape == (max(1, groups), b * each) and a["columns"].shape == (max(1, groups), each)
    np.testing.assert_array_equal(
        a["block_ptr"], np.cumsum([0, *-(-np.diff(plain.arrays["block_ptr"]) // each)])
    )
    np.testing.assert_array_equal(unpack(packed).toarray(), S.toarray())
    np.testing.assert_allclose(matvec(packed, x), x @ S.toarray().T.astype("float64"), atol=1e-9)
    for band in range(len(a["block_ptr"]) - 1):
        some = slice(*plain.arrays["block_ptr"][band : band + 2])
        mine = slice(*a["block_ptr"][band : band + 2])
        assert set(a["columns"][mine].ravel()) == set(plain.arrays["columns"][some])
    with pytest.raises(InvalidInput, match="between 1 and 4"):
        pack(name, S, each=5)
