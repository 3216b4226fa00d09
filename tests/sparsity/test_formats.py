"""Every format x every awkward shape: packing is exact, matvec right, the arrays as specified."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tvm_doping.errors import InvalidInput
from tvm_doping.sparsity import FORMATS, Packed, matvec, pack, unpack
from tvm_doping.structures import canonical

SHAPES = [(1, 1), (16, 32), (17, 33), (5, 100), (64, 64), (200, 50), (31, 1)]
DENSITIES = [0.0, 0.03, 0.3, 1.0]


def random_s(m: int, n: int, density: float, seed: int = 0) -> sparse.csr_array:
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((m, n), dtype=np.float32) * (rng.random((m, n)) < density)
    W[m // 2] = 0
    return canonical(W)


def same(a: sparse.csr_array, b: sparse.csr_array) -> bool:
    return (
        a.shape == b.shape
        and a.data.dtype == b.data.dtype == np.float32
        and np.array_equal(a.indptr, b.indptr)
        and np.array_equal(a.indices, b.indices)
        and np.array_equal(a.data, b.data)
    )


def check_arrays(packed: Packed) -> None:
    for name, array in packed.arrays.items():
        assert array.size >= 1, name
        assert array.flags.c_contiguous, name
    assert packed.bytes == sum(a.nbytes for a in packed.arrays.values())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("density", DENSITIES)
def test_packing_is_exact_and_matvec_right(name: str, shape: tuple[int, int], density: float) -> None:
    S = random_s(*shape, density)
    packed = pack(name, S)
    check_arrays(packed)
    assert same(unpack(packed), S)
    assert packed.nnz == S.nnz
    x = np.random.default_rng(1).standard_normal((2, 3, shape[1]))
    y = matvec(packed, x)
    assert y.shape == (2, 3, shape[0])
    np.testing.assert_allclose(y, x @ S.toarray().astype(np.float64).T, atol=1e-12 * shape[1])
    assert matvec(packed, x[0, 0].astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.startswith("sell")])
def test_more_columns_than_sixteen_bits_hold(name: str) -> None:
    columns = np.array([0, 65535, 65536, 69999, 70000])
    entries = (np.arange(1, 6, dtype=np.float32), (np.array([0, 0, 1, 18, 18]), columns))
    S = canonical(sparse.coo_array(entries, shape=(19, 70001)))
    packed = pack(name, S)
    assert same(unpack(packed), S)
    x = np.zeros(70001, np.float32)
    x[65536] = 2.0
    assert matvec(packed, x)[1] == 6.0


@pytest.mark.parametrize("name", ["sell16", "sell32"])
def test_sell_refuses_more_columns_than_its_indices_hold(name: str) -> None:
    with pytest.raises(InvalidInput, match="65536"):
        pack(name, canonical(sparse.coo_array((3, 65537), dtype=np.float32)))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.floats(0, 1), st.integers(0, 2**16))
def test_law_unpack_inverts_pack(name: str, m: int, n: int, density: float, seed: int) -> None:
    S = random_s(m, n, density, seed)
    assert same(unpack(pack(name, S)), S)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 2**16), st.floats(-3, 3))
def test_law_matvec_is_linear(name: str, m: int, n: int, seed: int, scale: float) -> None:
    packed = pack(name, random_s(m, n, 0.3, seed))
    x, z = np.random.default_rng(seed).standard_normal((2, n))
    np.testing.assert_allclose(
        matvec(packed, scale * x + z), scale * matvec(packed, x) + matvec(packed, z), atol=1e-9
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_batch_too_large_for_one_step_is_the_same_in_several(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(name, random_s(20, 45, 0.2))
    x = np.random.default_rng(0).standard_normal((3, 7, 45))
    whole = matvec(packed, x)
    monkeypatch.setattr("tvm_doping.sparsity.formats.base._TERMS", 4 * packed.arrays["values"].size)
    np.testing.assert_array_equal(matvec(packed, x), whole)
    assert matvec(packed, x[:, :0]).shape == (3, 0, 20)


@pytest.mark.parametrize("multiple", [1, 4, 8, 16])
def test_csr_pads_rows_to_the_multiple_with_their_last_column(multiple: int) -> None:
    S = random_s(20, 45, 0.2)
    packed = pack("csr", S, multiple=multiple)
    a = packed.arrays
    assert a["indptr"].dtype == np.int32
    assert a["indices"].dtype == np.uint16
    assert a["values"].dtype == np.float32
    lengths = np.diff(a["indptr"])
    assert not (lengths % multiple).any()
    assert (lengths - np.diff(S.indptr) < multiple).all()
    for row in range(20):
        own = S.indices[S.indptr[row] : S.indptr[row + 1]]
        stored = a["indices"][a["indptr"][row] : a["indptr"][row + 1]]
        assert (stored[len(own) :] == own[-1:]).all()
        assert not a["values"][a["indptr"][row] + len(own) : a["indptr"][row + 1]].any()
    assert same(unpack(packed), S)


def test_sell16_groups_rows_of_like_length() -> None:
    S = random_s(50, 40, 0.3)
    a = pack("sell16", S).arrays
    lengths = np.diff(S.indptr)
    assert sorted(a["rows"]) == list(range(64))
    assert list(a["rows"][50:]) == list(range(50, 64))
    assert (np.diff(lengths[a["rows"][:50]]) <= 0).all()
    assert list(np.diff(a["group_ptr"])) == [lengths[a["rows"][g * 16]] for g in range(4)]
    assert a["indices"].dtype == np.uint16
    assert a["values"].shape == a["indices"].shape


@pytest.mark.parametrize("grouped", [0, 1])
@pytest.mark.parametrize("multiple", [1, 2, 4])
@pytest.mark.parametrize("density", [0.05, 0.5])
def test_perm32_is_laid_out_as_specified(grouped: int, multiple: int, density: float) -> None:
    """Slot by slot: each window as far left as a nonzero not stored yet, and in it the next nonzero of every lane it reaches."""
    S = random_s(40, 100, density)
    packed = pack("perm32", S, grouped=grouped, multiple=multiple)
    a = packed.arrays
    assert sorted(a["rows"]) == list(range(48))
    assert list(a["rows"][40:]) == list(range(40, 48))
    if not grouped:
        assert list(a["rows"]) == list(range(48))
    assert a["indices"].dtype == np.uint8
    assert a["windows"].dtype == np.uint16
    assert len(a["windows"]) == len(a["indices"]) == len(a["values"]) == a["slot_ptr"][3]
    W = np.vstack([S.toarray(), np.zeros((8, 100))])
    slot = 0
    for g in range(3):
        assert a["slot_ptr"][g] == slot
        rows = W[a["rows"][g * 16 : g * 16 + 16]].copy()
        while rows.any():
            window = int(np.flatnonzero(rows.any(axis=0))[0]) // 8 * 8
            assert a["windows"][slot] == window
            for lane, row in enumerate(rows):
                left = np.flatnonzero(row)
                column = left[0] if len(left) and left[0] < window + 32 else window
                assert a["indices"][slot, lane] == column - window
                stored = np.float32(row[column]) if len(left) and left[0] == column else 0
                assert a["values"][slot, lane] == stored
                row[column] = 0
            slot += 1
        empty = -(slot - a["slot_ptr"][g]) % multiple
        assert not a["values"][slot : slot + empty].any()
        slot += empty
    assert a["slot_ptr"][3] == slot
    assert same(unpack(packed), S)
    x = np.random.default_rng(0).standard_normal(100)
    np.testing.assert_allclose(matvec(packed, x), S.toarray().astype(np.float64) @ x, atol=1e-9)


@pytest.mark.parametrize("multiple", [2, 4])
@pytest.mark.parametrize("grouped", [0, 1])
@pytest.mark.parametrize("density", [0.05, 0.5])
def test_perm8_is_laid_out_as_specified(density: float, grouped: int, multiple: int) -> None:
    """Slot by slot: windows of 8 columns that begin at the leftmost nonzero not stored yet; 4 bits an index, rounds in a word."""
    S = random_s(43, 100, density)
    packed = pack("perm8", S, grouped=grouped, multiple=multiple)
    a = packed.arrays
    assert sorted(a["rows"]) == list(range(48))
    assert grouped or list(a["rows"]) == list(range(48))
    assert a["indices"].dtype == {2: np.uint8, 4: np.uint16}[multiple]
    assert multiple * len(a["indices"]) == len(a["windows"]) == len(a["values"]) == a["slot_ptr"][6]
    W, slot = np.vstack([S.toarray(), np.zeros((5, 100), np.float32)]), 0
    for g in range(6):
        assert a["slot_ptr"][g] == slot
        rows = W[a["rows"][g * 8 : g * 8 + 8]].copy()
        while rows.any():
            window = int(np.flatnonzero(rows.any(axis=0))[0])
            assert a["windows"][slot] == window
            for lane, row in enumerate(rows):
                left = [c for c in np.flatnonzero(row)[:1] if c < window + 8]
                column, value = (left[0], row[left[0]]) if left else (window, 0.0)
                word = int(a["indices"][slot // multiple, lane])
                assert word >> 4 * (slot % multiple) & 15 == column - window
                assert a["values"][slot, lane] == value
                row[left] = 0
            slot += 1
        empty = -(slot - a["slot_ptr"][g]) % multiple
        assert not a["values"][slot : slot + empty].any()
        slot += empty
    assert a["slot_ptr"][6] == slot
    assert same(unpack(packed), S)


@pytest.mark.parametrize(("format", "step"), [("perm64", 16), ("perm2x32", 8)])
@pytest.mark.parametrize("multiple", [1, 2, 4])
@pytest.mark.parametrize("density", [0.05, 0.5])
def test_two_entries_a_lane_are_laid_out_as_specified(
    density: float, multiple: int, format: str, step: int
) -> None:
    """Slot by slot: windows of 64 columns that begin every `step`, and in each the next two nonzeros of every lane it reaches.

    Values lie in the order of the indices in perm64, the first ones of all lanes before the second ones in perm2x32.
    """
    S = random_s(40, 150, density)
    packed = pack(format, S, multiple=multiple)
    a = packed.arrays
    values = a["values"]
    if format == "perm2x32":
        values = np.stack([values[:, :16], values[:, 16:]], axis=2).reshape(-1, 32)
    assert a["indices"].dtype == np.uint8
    assert len(a["windows"]) == len(a["indices"]) == len(a["values"]) == a["slot_ptr"][3]
    W, slot = np.vstack([S.toarray(), np.zeros((8, 150), np.float32)]), 0
    for g in range(3):
        assert a["slot_ptr"][g] == slot
        rows = W[g * 16 : g * 16 + 16].copy()
        while rows.any():
            window = int(np.flatnonzero(rows.any(axis=0))[0]) // step * step
            assert a["windows"][slot] == window
            for lane, row in enumerate(rows):
                left = [c for c in np.flatnonzero(row)[:2] if c < window + 64]
                expected = [(c - window, row[c]) for c in left] + [(0, 0.0)] * (2 - len(left))
                entries = slice(2 * lane, 2 * lane + 2)
                stored = zip(a["indices"][slot, entries], values[slot, entries], strict=True)
                assert list(stored) == expected
                row[left] = 0
            slot += 1
        empty = -(slot - a["slot_ptr"][g]) % multiple
        assert not values[slot : slot + empty].any()
        slot += empty
    assert a["slot_ptr"][3] == slot
    assert same(unpack(packed), S)
    x = np.random.default_rng(0).standard_normal(150)
    np.testing.assert_allclose(matvec(packed, x), S.toarray().astype(np.float64) @ x, atol=1e-9)


@pytest.mark.parametrize("multiple", [1, 2, 4])
def test_perm32_expand_stores_the_values_without_padding(multiple: int) -> None:
    S = random_s(40, 100, 0.3)
    padded, packed = (pack(name, S, multiple=multiple).arrays for name in ("perm32", "perm32_expand"))
    filled = padded["values"] != 0
    np.testing.assert_array_equal(packed["values"][: S.nnz], padded["values"][filled])
    assert packed["values"].size == S.nnz + 16
    for slot, mask in enumerate(packed["masks"]):
        assert [bool(mask >> lane & 1) for lane in range(16)] == list(filled[slot])
    before = np.append(0, np.cumsum(filled.sum(axis=1)))
    np.testing.assert_array_equal(packed["value_ptr"], before[:-1:multiple])


def test_blocks_of_a_block_pattern_hold_no_padding() -> None:
    rng = np.random.default_rng(0)
    S = canonical(np.repeat(rng.random((4, 30)) < 0.2, 8, axis=0) * rng.standard_normal((32, 30)))
    packed = pack("block8", S)
    assert packed.arrays["values"].size == S.nnz
    assert (packed.arrays["values"] != 0).all()


def test_a_wrong_name_or_parameter_is_named() -> None:
    S = random_s(4, 4, 0.5)
    with pytest.raises(InvalidInput, match="perm32"):
        pack("coo", S)
    with pytest.raises(InvalidInput, match="stride"):
        pack("csr", S, stride=3)
    with pytest.raises(InvalidInput, match="multiple"):
        pack("csr", S, multiple=0)
    with pytest.raises(InvalidInput, match="multiple 1, 2 or 4"):
        pack("perm32", S, multiple=3)
    with pytest.raises(InvalidInput, match="multiple 2 or 4"):
        pack("perm8", S, multiple=1)
    with pytest.raises(InvalidInput, match="format csr"):
        FORMATS["csr"].unpack(pack("block4", S))
    with pytest.raises(InvalidInput, match="last dimension"):
        matvec(pack("csr", S), np.zeros(5))


def test_the_pattern_nm32_fills_every_slot_of_perm32() -> None:
    rng = np.random.default_rng(3)
    W = np.zeros((64, 12, 32))
    for stripe in range(12):
        for row in range(64):
            W[row, stripe, rng.choice(32, 2, replace=False)] = rng.uniform(0.5, 1.0, 2)
    packed = pack("perm32", canonical(W.reshape(64, 384)))
    assert (packed.arrays["values"] != 0).all()


def test_mma16_lies_as_the_lanes_of_a_warp_hold_it() -> None:
    """Element by element, with the rows and columns that PTX's manual gives for A of mma.m16n8k16."""
    S = random_s(40, 90, 0.4)
    a, W = pack("mma16", S).arrays, np.pad(S.toarray(), ((0, 8), (0, 0)))
    assert list(np.diff(a["tile_ptr"])) == [
        -(-np.count_nonzero(W[16 * b : 16 * b + 16].any(axis=0)) // 16) for b in range(3)
    ]
    for band in range(3):
        used = np.flatnonzero(W[16 * band : 16 * band + 16].any(axis=0))
        for tile in range(a["tile_ptr"][band], a["tile_ptr"][band + 1]):
            held = used[16 * (tile - a["tile_ptr"][band]) :][:16]
            assert list(a["columns"][tile]) == [*held, *[used[-1]] * (16 - len(held))]
            for lane in range(32):
                group, thread = lane // 4, lane % 4
                for i in range(8):
                    row = group + (8 if i in (2, 3, 6, 7) else 0)
                    k = thread * 2 + i % 2 + (8 if i >= 4 else 0)  # of the instruction
                    place = thread * 4 + k % 2 + (2 if k >= 8 else 0)  # of the tile's columns
                    wanted = W[16 * band + row, held[place]] if place < len(held) else 0.0
                    assert a["values"][tile, lane, i] == wanted


def test_tiles_of_a_block_pattern_hold_whole_blocks() -> None:
    rng = np.random.default_rng(0)
    S = canonical(np.repeat(rng.random((4, 200)) < 0.2, 16, axis=0) * rng.standard_normal((64, 200)))
    packed = pack("mma16", S)
    whole = packed.arrays["values"].any(axis=(1, 2)).sum() * 256
    assert packed.arrays["values"].size == whole < S.nnz + 4 * 256, "padding in the last tile of a band alone"
