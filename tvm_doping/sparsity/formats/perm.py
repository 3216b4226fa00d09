"""perm32: 16 rows side by side under a sliding window of 32 columns: x is read by permuting two registers, never gathered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tvm_doping.errors import InvalidInput
from tvm_doping.sparsity.formats.base import (
    LANES,
    Array,
    Format,
    Packed,
    column_dtype,
    lanes_of,
    pointers,
    sum_runs,
)
from tvm_doping.structures.sparse import canonical, from_coordinates, row_of_entry


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What one slot can hold.

    lanes   rows of a group: fp32 values of a register;
    window  columns: the reach of one look-up, two AVX-512 registers of x (perm8: one of AVX2);
    step    columns between windows: above 1, the kernel keeps x as half-overlapping registers, and no load crosses a cache line;
    each    nonzeros of a lane.
    """

    lanes: int = LANES
    window: int
    step: int
    each: int


PERM32 = Reach(window=32, step=8, each=1)


class Perm32(Format):
    """Sixteen rows (a group, one row a lane), stored as slots: of each lane at most one nonzero, all of them in one window.

    rows (G*16,) int32     row of each lane: natural order, or rows that are alike in groups when `grouped` is 1
    slot_ptr (G+1,) int32  where the slots of each group begin
    windows (slots,)       first column of the slot's window, a multiple of 8; uint16 (uint32 when n > 65536)
    indices (slots, 16)    uint8, column - window, 0..31
    values (slots, 16)     float32

    The window of a slot begins at the leftmost 8 columns that hold a nonzero not stored yet, and each lane stores its next
    nonzero if the window reaches it. So lanes run ahead of each other by up to a window, which fills more of the slots than
    fixed stripes of 32 columns do (random S of 5 %: 0.53 of them against 0.39), and no other choice of windows in this order
    fills more. A lane without one is padded with index 0 and value 0, a group to a `multiple` of slots with empty ones.
    """

    name = "perm32"
    reach: ClassVar[Reach] = PERM32
    multiples: ClassVar[tuple[int, ...]] = (1, 2, 4)
    pointers = "slot_ptr"
    defaults: ClassVar[Mapping[str, int]] = {"multiple": 4, "grouped": 0}

    def _pack(self, S: sparse.csr_array, params: dict[str, int]) -> dict[str, Array]:
        multiple, n = params["multiple"], S.shape[1]
        if multiple not in self.multiples or params["grouped"] not in (0, 1):
            *some, last = map(str, self.multiples)
            raise InvalidInput(
                f"{self.name} parameters",
                f"multiple {', '.join(some)} or {last} and grouped 0 or 1",
                f"{params}",
                "The defaults are 4 and 0.",
            )
        lanes = _lanes(S, params["grouped"], self.reach.lanes)
        steps = _slide(S, lanes, self.reach)
        counts = np.zeros(len(lanes) // self.reach.lanes, np.int64)
        for groups, _, _ in steps:
            counts[groups] += 1
        slot_ptr = pointers(-(-counts // multiple) * multiple)
        windows = np.zeros(slot_ptr[-1], column_dtype(n))
        indices = np.zeros((slot_ptr[-1], self.reach.lanes * self.reach.each), np.uint8)
        values = np.zeros(indices.shape, np.float32)
        data = np.append(S.data, np.float32(0))
        for k, (groups, window, entries) in enumerate(steps):
            slots = slot_ptr[groups] + k
            taken = entries < S.nnz
            windows[slots], values[slots] = window, data[entries]
            columns = S.indices[np.where(taken, entries, 0)]
            indices[slots] = np.where(taken, columns - window[:, None], 0)
        return {"rows": lanes, "slot_ptr": slot_ptr, "windows": windows, "indices": indices, "values": values}

    def _unpack(self, packed: Packed) -> sparse.csr_array:
        a, columns = packed.arrays, _columns(packed)
        rows = np.repeat(a["rows"].reshape(-1, self.reach.lanes), np.diff(a["slot_ptr"]), axis=0)
        rows = rows.repeat(self.reach.each, axis=1)
        return from_coordinates(rows.ravel(), columns.ravel(), a["values"][: len(rows)].ravel(), packed.shape)

    def _matvec(self, packed: Packed, x: NDArray[np.floating]) -> NDArray[np.floating]:
        a, columns = packed.arrays, _columns(packed)
        terms = x[..., columns] * a["values"][: len(columns)].astype(x.dtype)
        y = np.empty((*x.shape[:-1], len(a["rows"])), x.dtype)
        sums = sum_runs(terms, a["slot_ptr"], axis=-2)
        y[..., a["rows"]] = sums.reshape(*y.shape, self.reach.each).sum(axis=-1)
        return y[..., : packed.shape[0]]


def count_slots(S: sparse.csr_array, grouped: int, reach: Reach = PERM32) -> int:
    """Slots that a look-up format makes of S, without the padding to a `multiple`."""
    S = canonical(S)
    return sum(len(groups) for groups, _, _ in _slide(S, _lanes(S, grouped, reach.lanes), reach))


_NONE = 2**40  # the column of a lane that has none left


def _slide(S: sparse.csr_array, lanes: Array, reach: Reach) -> list[tuple[Array, Array, Array]]:
    """Slot k of every group that has so many: the groups, their windows, and the entries (groups, lanes each), nnz for none."""
    beyond = np.zeros(len(lanes) - S.shape[0], S.indptr.dtype)
    at, end = (
        np.append(ptr, beyond)[lanes].astype(np.int64).reshape(-1, reach.lanes)
        for ptr in (S.indptr[:-1], S.indptr[1:])
    )
    column = np.append(S.indices.astype(np.int64), _NONE)
    groups = np.arange(len(at))
    steps: list[tuple[Array, Array, Array]] = []
    while True:
        leftmost = np.where(at < end, column[at], _NONE).min(axis=1)
        live = leftmost < _NONE
        if not live.all():
            groups, at, end = groups[live], at[live], end[live]
            leftmost = leftmost[live]
        if not len(groups):
            return steps
        window = leftmost // reach.step * reach.step
        entries = np.full((*at.shape, reach.each), S.nnz)
        for i in range(reach.each):
            following = np.where(at < end, column[at], _NONE)
            taken = following < (window + reach.window)[:, None]
            entries[..., i] = np.where(taken, at, S.nnz)
            at = at + taken
        steps.append((groups, window, entries.reshape(len(groups), -1)))


def _lanes(S: sparse.csr_array, grouped: int, size: int) -> NDArray[np.int32]:
    return lanes_of(_alike(S, size) if grouped else np.arange(S.shape[0]), size)


_PARTS = 16  # of the columns, in which the nonzeros of a row are counted
_POOL = 4096  # rows of like length, among which groups are formed: bounds the time for a matrix of many rows


def _alike(S: sparse.csr_array, size: int) -> NDArray[np.int64]:
    """The rows in groups of `size` that spread their nonzeros alike over the columns: then no lane waits long for another.

    Alike are rows whose counts of nonzeros up to each column are close. From the longest row left, its nearest: in groups
    of 16 7-9 % fewer slots than rows by length (random S and trained ones), a third fewer than rows in natural order where
    training made them differ.
    """
    counts = np.zeros((S.shape[0], _PARTS), np.int64)
    np.add.at(counts, (row_of_entry(S), S.indices.astype(np.int64) * _PARTS // S.shape[1]), 1)
    counts = counts.cumsum(axis=1)
    order = np.argsort(-counts[:, -1], kind="stable")
    groups: list[Array] = []
    for start in range(0, len(order), _POOL):
        left = order[start : start + _POOL]
        while len(left):
            distance = ((counts[left] - counts[left[0]]) ** 2).sum(axis=1)
            nearest = np.argsort(distance, kind="stable")[:size]
            groups.append(left[nearest])
            left = np.delete(left, nearest)
    return np.concatenate(groups)


def _columns(packed: Packed) -> NDArray[np.int64]:
    """The column (slots, lanes each) of each slot's entries."""
    a = packed.arrays
    slots = a["slot_ptr"][-1]
    columns: NDArray[np.int64] = a["windows"][:slots].astype(np.int64)[:, None] + a["indices"][:slots]
    return columns
