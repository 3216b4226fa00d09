"""How a weight is cut into parts, one for each block of threads, and what each part stores.

A block computes all gates of some hidden units, so that it updates their state alone: rows u, H + u, 2H + u and 3H + u of W.
They are brought together by a permutation of W's rows, filled up to whole warps:

    row b R + k U + j of the permuted matrix  =  row k H + b U + j of W        block b, gate k, its unit j < U

Arrays of a product (P parts of R rows, G = R / 32 groups of 32 rows a part):
    S.*             S permuted, as sell32 with a window of R: rows of a part are sorted by length among themselves; or as mma16
    W (P G, n, 32)  a dense weight, in panels of 32 rows; W.scales (P G,) of int8
    first, second, local, at    a Kronecker product: see `_kronecker`
    V, U, pick      a low rank or hybrid: see `_low_rank`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import sparse as sp

from tvm_doping import sparsity
from tvm_doping.kernels.plan import Part, Product
from tvm_doping.kernels.product import base_of
from tvm_doping.sparsity.values import decode, encode, round_bf16

WARP = 32  # rows of a group: one a lane
FORMAT = "sell32"
TENSOR = "mma16"  # for tensor cores: values in fp16 or bf16
LOW_RANK = ("low_rank", "hybrid")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """units of each of `gates` gates, cut into `parts` of `each` units, the last of which may have fewer."""

    units: int
    gates: int
    parts: int

    @property
    def each(self) -> int:
        return -(-self.units // self.parts)

    @property
    def rows(self) -> int:
        """Rows of a part, filled up to whole groups."""
        return -(-self.gates * self.each // WARP) * WARP

    @property
    def groups(self) -> int:
        return self.rows // WARP

    def order(self) -> np.ndarray:
        """(parts * rows,) int64: the row of W of each permuted row, -1 for filling."""
        order = np.full((self.parts, self.rows), -1)
        units = np.arange(self.parts * self.each).reshape(self.parts, self.each)
        for gate in range(self.gates):
            rows = np.where(units < self.units, gate * self.units + units, -1)
            order[:, gate * self.each : (gate + 1) * self.each] = rows
        return order.ravel()


def pack(product: Product, structure: Any, cut: Cut) -> dict[str, np.ndarray]:
    """The arrays of a product; those of S are named "S." and more."""
    order = cut.order()
    arrays: dict[str, np.ndarray] = {}
    if product.sparse is not None:
        packed = sparsity.pack(
            product.sparse, in_parts(structure.S, cut), values=product.values, **_params(product, cut)
        )
        arrays |= {"S." + name: array for name, array in packed.arrays.items()}
    if product.part.kind == "dense":
        arrays |= _panels("W", np.asarray(structure.to_dense(), "float32"), order, product)
    elif product.part.kind == "kronecker":
        arrays |= _kronecker(base_of(structure), order, product.part, cut)
    elif product.part.kind in LOW_RANK:
        arrays |= _low_rank(base_of(structure), order[_lanes(arrays)], product)
    return arrays


def to_dense(product: Product, arrays: dict[str, np.ndarray], cut: Cut) -> np.ndarray:
    """The matrix (m, n) that packed arrays stand for, its values rounded as they are stored."""
    order, n = cut.order(), product.columns
    permuted = np.zeros((len(order), n), "float32")
    if product.part.kind == "dense":
        permuted += _rows("W", arrays, product)
    elif product.part.kind == "kronecker":
        first = arrays["first"][np.repeat(np.arange(cut.parts), cut.rows), arrays["local"]]
        second = arrays["second"][arrays["at"]]
        left = product.part.order == "left"
        blocks = first[:, :, None] * second[:, None, :] if left else second[:, :, None] * first[:, None, :]
        permuted += blocks.reshape(-1, n)
    elif product.part.kind in LOW_RANK:
        permuted[_lanes(arrays)] += _low_rank_rows(arrays, product)
    if product.sparse is not None:
        packed = sparsity.Packed(
            format=product.sparse,
            shape=permuted.shape,
            nnz=product.nnz,
            arrays={name[2:]: array for name, array in arrays.items() if name.startswith("S.")},
            params=_params(product, cut),
            values=product.values,
        )
        permuted += sparsity.FORMATS[product.sparse].unpack(packed).toarray()
    whole = np.zeros((product.rows, n), "float32")
    whole[order[order >= 0]] = permuted[order >= 0]
    return whole


def reference(
    product: Product, arrays: dict[str, np.ndarray], cut: Cut
) -> Callable[[np.ndarray], np.ndarray]:
    """The function z (..., n) -> W z (..., m) of packed arrays in NumPy, which rounds z where tensor cores do."""
    if product.sparse != TENSOR:
        W = to_dense(product, arrays, cut)
        return lambda z: z @ W.T
    base = to_dense(replace(product, sparse=None), arrays, cut)
    S = to_dense(replace(product, part=Part(kind="zero", shape=product.part.shape)), arrays, cut)
    return lambda z: z @ base.T + rounded(z, product) @ S.T


def rounded(z: np.ndarray, product: Product) -> np.ndarray:
    """z as tensor cores take it, in the type of the values of S."""
    return round_bf16(z) if product.values == "bf16" else z.astype(np.float16).astype("float32")


def permuted_vector(v: np.ndarray, cut: Cut) -> np.ndarray:
    """v (m,) in the order of the parts' rows, 0 for filling."""
    order = cut.order()
    return np.where(order >= 0, np.asarray(v, "float32")[order], np.float32(0)).astype("float32")


def restored_vector(v: np.ndarray, cut: Cut) -> np.ndarray:
    """What `permuted_vector` made v (parts * rows,) of."""
    order = cut.order()
    restored = np.zeros(cut.gates * cut.units, "float32")
    restored[order[order >= 0]] = v[order >= 0]
    return restored


def in_parts(S: sp.csr_array, cut: Cut) -> sp.csr_array:
    """S (m, n) with its rows in the order of the parts', empty ones for filling."""
    order = cut.order()
    lengths = np.where(order >= 0, np.diff(S.indptr)[order], 0)
    starts = S.indptr[order]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    entries = np.repeat(starts - indptr[:-1], lengths) + np.arange(indptr[-1])
    return sp.csr_array((S.data[entries], S.indices[entries], indptr), shape=(len(order), S.shape[1]))


def _params(product: Product, cut: Cut) -> dict[str, int]:
    return {"window": cut.rows} if product.sparse == FORMAT else {}


def _lanes(arrays: dict[str, np.ndarray]) -> Any:
    """The permuted row of each lane of each group: as S has them in sell32, or in order."""
    return arrays.get("S.rows", slice(None))


def _panels(name: str, W: np.ndarray, order: np.ndarray, product: Product) -> dict[str, np.ndarray]:
    """Rows of W (m, n) in this order, -1 for zeros, as `name` (rows / 32, n, 32)."""
    permuted = np.where(order[:, None] >= 0, W[order], np.float32(0))
    return _stored(name, permuted.reshape(-1, WARP, W.shape[1]).transpose(0, 2, 1), product)


def _stored(name: str, array: np.ndarray, product: Product) -> dict[str, np.ndarray]:
    """The array as its values are stored; int8 with a scale an entry of the first dimension."""
    stored = encode(np.ascontiguousarray(array), np.arange(len(array) + 1), product.values)
    return {name: stored["values"], **({name + ".scales": stored["scales"]} if "scales" in stored else {})}


def _loaded(name: str, arrays: dict[str, np.ndarray], product: Product) -> np.ndarray:
    runs = np.arange(len(arrays[name]) + 1)
    return decode(arrays[name], runs, product.values, arrays.get(name + ".scales"))


def _rows(name: str, arrays: dict[str, np.ndarray], product: Product) -> np.ndarray:
    """The rows of panels."""
    panels = _loaded(name, arrays, product)
    return panels.transpose(0, 2, 1).reshape(-1, panels.shape[1])


def _low_rank(base: Any, order: np.ndarray, product: Product) -> dict[str, np.ndarray]:
    """U V, and [D; U V] of a hybrid, whose D is k rows more of V: t = [D; V] z, then row i < k is t[i], others U[i - k] t[k:].

    V (k + r, n) in its order; V.scales (k + r,) of int8; U (P G, r, 32) in panels of the lanes' rows, zeros for those of D;
    U.scales; pick (P R,) int32 the row of D that a lane has, -1 for none. A low rank has no pick, and k = 0.
    """
    if base.kind == "low_rank":
        return _stored("V", base.V, product) | _panels("U", base.U, order, product)
    k = len(base.D)
    arrays = _stored("V", np.concatenate([base.D, base.V]), product)
    arrays |= _panels("U", base.U, np.where(order >= k, order - k, -1), product)
    return arrays | {"pick": np.where((order >= 0) & (order < k), order, -1).astype(np.int32)}


def _low_rank_rows(arrays: dict[str, np.ndarray], product: Product) -> np.ndarray:
    """The row of each lane."""
    V, U = _loaded("V", arrays, product), _rows("U", arrays, product)
    k = len(V) - product.part.dims[-1]
    rows: np.ndarray = U @ V[k:]
    if "pick" in arrays:
        rows += np.where(arrays["pick"][:, None] >= 0, V[arrays["pick"]], np.float32(0))
    return rows


def _kronecker(base: Any, order: np.ndarray, part: Part, cut: Cut) -> dict[str, np.ndarray]:
    """Row (i, j) of B (x) C is B[i] (x) C[j]. A block first multiplies z by each row of one factor that its rows need,

        t[l, q] = sum_k first[l, k] z[k, q]  (order left: first = B's rows)    or  sum_k first[l, k] z[q, k]  (right: C's),

    then a row r adds sum_q t[local[r], q] second[at[r], q].

    first (P, L, k) its own rows of that factor; local (P R,) uint16 the place among them; second the other factor; at (P R,)
    uint32 the row of it. L is the largest number that a part needs.
    """
    m2 = part.dims[2]
    rows = np.maximum(order, 0)
    i, j = rows // m2, rows % m2
    mine, other = (i, j) if part.order == "left" else (j, i)
    first, second = (base.B, base.C) if part.order == "left" else (base.C, base.B)
    mine = mine.reshape(cut.parts, cut.rows).copy()
    filling = (order < 0).reshape(mine.shape)
    wanted = [
        np.unique(row[~hole]) if (~hole).any() else np.zeros(1, np.int64)
        for row, hole in zip(mine, filling, strict=True)
    ]
    most = max(map(len, wanted))
    taken = np.stack([np.pad(w, (0, most - len(w)), mode="edge") for w in wanted])
    local = np.stack(
        [np.minimum(np.searchsorted(w, row), len(w) - 1) for w, row in zip(wanted, mine, strict=True)]
    )
    return {
        "first": np.ascontiguousarray(first[taken], "float32"),
        "local": local.ravel().astype(np.uint16),
        "second": np.ascontiguousarray(second, "float32"),
        "at": np.where(order >= 0, other, 0).astype(np.uint32),
    }


@lru_cache(maxsize=256)
def needed(part: Part, cut: Cut) -> tuple[int, int]:
    """Rows of the first factor that a part needs at most, if B's come first and if C's do."""
    order, m2 = cut.order().reshape(cut.parts, cut.rows), part.dims[2]
    rows = [row[row >= 0] for row in order]
    return max(len(np.unique(r // m2)) for r in rows), max(len(np.unique(r % m2)) for r in rows)
