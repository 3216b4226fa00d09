"""Values stored narrow: every format x every type rounds as an independent oracle does, and computes with what it stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse

from tests.sparsity.test_formats import random_s
from tvm_doping.errors import InvalidInput
from tvm_doping.sparsity import FORMATS, Packed, matvec, pack, unpack
from tvm_doping.sparsity.values import VALUE_BYTES, VALUE_TYPES, ValueType, decode, encode, round_bf16

NARROW: list[ValueType] = ["fp16", "bf16", "int8"]
DTYPES = {"fp16": np.float16, "bf16": np.uint16, "int8": np.int8}


def groups_of(packed: Packed) -> np.ndarray:
    """The group (m,) of each row: a row of csr, a band of blocks, 8 lanes of perm8, 32 of sell32, 16 rows of the others."""
    m, a = packed.shape[0], packed.arrays
    if "rows" in a:
        place = np.argsort(a["rows"])[:m]
        return place // {"perm8": 8, "sell32": 32}.get(packed.format, 16)
    if packed.format == "mma16":
        return np.arange(m) // 16
    return np.arange(m) // (a["values"].shape[1] if packed.format.startswith("block") else 1)


def rounded(S: sparse.csr_array, kind: str, group: np.ndarray) -> np.ndarray:
    """S (m, n) dense, its values rounded by NumPy and torch."""
    W = S.toarray()
    if kind == "fp16":
        return W.astype(np.float16).astype(np.float32)
    if kind == "bf16":
        return torch.from_numpy(W).to(torch.bfloat16).float().numpy()
    peaks = np.zeros(group.max() + 1, np.float32)
    np.maximum.at(peaks, group, np.abs(W).max(axis=1))
    scale = np.where(peaks > 0, peaks / np.float32(127), np.float32(1))[group][:, None]
    return (np.rint(W / scale) * scale).astype(np.float32)


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.6])
def test_what_is_stored_is_s_rounded(name: str, kind: ValueType, density: float) -> None:
    S = random_s(50, 70, density)
    packed = pack(name, S, values=kind)
    assert packed.arrays["values"].dtype == DTYPES[kind]
    assert packed.nnz == S.nnz
    wanted = rounded(S, kind, groups_of(packed))
    np.testing.assert_array_equal(unpack(packed).toarray(), wanted)
    x = np.random.default_rng(0).standard_normal((2, 70))
    np.testing.assert_allclose(matvec(packed, x), x @ wanted.astype(np.float64).T, atol=1e-9)
    full = pack(name, S)
    saved = full.arrays["values"].size * (4 - VALUE_BYTES[kind])
    scales = packed.arrays["scales"].nbytes if kind == "int8" else 0
    assert packed.bytes == full.bytes - saved + scales


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 50), st.integers(1, 60), st.floats(0, 1), st.integers(0, 2**16), st.sampled_from(NARROW)
)
def test_law_rounding_is_idempotent(
    name: str, m: int, n: int, density: float, seed: int, kind: ValueType
) -> None:
    # sell groups rows by their length, which changes where int8 rounds to 0, and the scales with it
    assume(not (name.startswith("sell") and kind == "int8"))
    once = unpack(pack(name, random_s(m, n, density, seed), values=kind))
    twice = unpack(pack(name, once, values=kind))
    np.testing.assert_allclose(twice.toarray(), once.toarray(), rtol=2e-7)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=40), st.sampled_from(NARROW))
def test_law_the_error_of_a_value_is_bounded(numbers: list[float], kind: ValueType) -> None:
    values, runs = np.array(numbers, np.float32), np.array([0, len(numbers)])
    stored = encode(values, runs, kind)
    off = np.abs(decode(stored["values"], runs, kind, stored.get("scales")).astype(np.float64) - values)
    half = {"fp16": 2.0**-11 * np.abs(values) + 2.0**-25, "bf16": 2.0**-8 * np.abs(values)}
    bound = half[kind] if kind in half else np.abs(values).max() / 253
    assert (off <= bound + 1e-30).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_law_bf16_is_that_of_torch(numbers: list[float]) -> None:
    """Infinities, NaN and what overflows included, as a kernel meets them in its input."""
    x = np.array(numbers, np.float32)
    rounded = round_bf16(x)
    np.testing.assert_array_equal(rounded, torch.from_numpy(x).to(torch.bfloat16).float().numpy())
    np.testing.assert_array_equal(round_bf16(rounded), rounded)


def test_fp32_is_stored_as_it_is() -> None:
    values = np.array([1.1, -2.2], np.float32)
    stored = encode(values, np.array([0, 2]), "fp32")
    assert list(stored) == ["values"]
    np.testing.assert_array_equal(stored["values"], values)


def test_int8_scales_run_by_run() -> None:
    values = np.array([1.0, -127.0, 0.5, 1e-3, 0.0], np.float32)
    runs = np.array([0, 2, 2, 4])  # the second one empty, a padding value behind the last
    stored = encode(values, runs, "int8")
    np.testing.assert_allclose(stored["scales"], [1.0, 1.0, 0.5 / 127], rtol=1e-6)
    assert list(stored["values"]) == [1, -127, 127, 0, 0]


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(kind: ValueType, bad: float) -> None:
    with pytest.raises(InvalidInput, match="finite"):
        encode(np.array([bad], np.float32), np.array([0, 1]), kind)


def test_what_fp16_cannot_hold_is_refused() -> None:
    S = sparse.csr_array(np.array([[1e5]], np.float32))
    with pytest.raises(InvalidInput, match="up to 6"):
        pack("csr", S, values="fp16")
    assert unpack(pack("csr", S, values="int8")).toarray()[0, 0] == pytest.approx(1e5)


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(InvalidInput, match=", ".join(VALUE_TYPES)):
        pack("csr", random_s(4, 4, 0.5), values="int4")  # type: ignore[arg-type]
