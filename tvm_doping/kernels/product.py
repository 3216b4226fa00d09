"""A whole product y += (structured part) z + S z: packing, the emitted code, and the NumPy reference on packed arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from tvm_doping import sparsity
from tvm_doping._tvm import T
from tvm_doping.kernels import dense, kronecker, sparse
from tvm_doping.kernels.emit import LINES, Buffer, copy, load, splat, split, store
from tvm_doping.kernels.plan import Config, Part, Product
from tvm_doping.kernels.scope import Scope
from tvm_doping.sparsity.dots import DOTS, Dot, round_inputs, runs
from tvm_doping.sparsity.values import round_bf16
from tvm_doping.structures import Dense

_ROOM: dict[str, Any] = {"kronecker": kronecker, "dense": dense, "low_rank": dense, "hybrid": dense}


def pack(product: Product, structure: Any, config: Config, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of a product, named with `prefix`: the structured part's own, and those of S behind "S." (`sparse.prefix`)."""
    arrays: dict[str, np.ndarray] = {}
    if product.part.kind != "zero":
        # a dense part without S is the whole weight, whatever structure it has
        alone = product.part.kind == "dense" and product.sparse is None
        base = Dense(structure.to_dense()) if alone else base_of(structure)
        arrays |= _ROOM[product.part.kind].pack(base, config, product.values, DOTS.get(product.dot))
    if product.sparse is not None:
        for at, stripe in enumerate(_striped(structure.S, product.stripes)):
            packed = sparsity.pack(product.sparse, stripe, values=product.values, **_params(product))
            arrays |= {sparse.prefix(product, at) + name: array for name, array in packed.arrays.items()}
    return {prefix + name: array for name, array in arrays.items()}


def emit(product: Product, scope: Scope) -> None:
    """Emit y += (structured part) z + S z. The structured part comes first: it may write zeros beyond its rows."""
    scope = replace(scope, dot=product.dot)
    if product.part.kind != "zero":
        _ROOM[product.part.kind].emit(product.part, scope)
    sparse.emit(product, scope)


def scratch(products: Sequence[Product], config: Config, width: int) -> Buffer:
    """The scope's scratch for any of the products."""
    parts = [product.part for product in products if product.part.kind != "zero"]
    size = max((int(_ROOM[part.kind].scratch(part, config, width)) for part in parts), default=0)
    return T.alloc_buffer((max(1, size),), "float32")


def parameters(arrays: Mapping[str, np.ndarray]) -> dict[str, Buffer]:
    """One argument of the function being built for each packed array, in order."""

    def argument(name: str, array: np.ndarray) -> Buffer:
        return T.match_buffer(T.arg("p_" + name.replace(".", "_"), T.handle()), array.shape, str(array.dtype))

    return {name: argument(name, array) for name, array in arrays.items()}


def select(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def set_bias(bias: Buffer, rows: int, scope: Scope) -> None:
    """Emit y = bias, the same for every stream of a tile."""
    lanes = scope.lanes
    if scope.width == 1:
        copy(
            lambda i, w: load(bias, i, w), lambda i, v, w: store(scope.y, i, v, w), rows, lanes, scope.shared
        )
        return
    with split(rows, scope.shared, LINES) as r:
        for v in range(scope.vectors):
            store(scope.y, r * scope.width + v * lanes, splat(bias[r], lanes), lanes)


def reference(product: Product, arrays: dict[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """The function z (..., columns) -> W z (..., rows) of packed arrays in NumPy, which rounds z where the kernel does."""
    dot, kind = DOTS.get(product.dot), product.part.kind
    if dot is None and product.sparse not in sparse.ROUNDING:
        return _linear(to_dense(product, arrays))
    terms: list[Callable[[np.ndarray], np.ndarray]] = []
    if dot is not None and kind in ("dense", "low_rank", "hybrid"):
        terms.append(dense.reference(product.part, arrays, product.values, dot))
    elif kind != "zero":
        terms.append(_linear(to_dense(replace(product, sparse=None), arrays)))
    if product.sparse is not None:
        S = to_dense(replace(product, part=Part(kind="zero", shape=product.part.shape)), arrays)
        if product.sparse in sparse.ROUNDING:
            terms.append(lambda z: round_bf16(z) @ S.T)
        elif dot is not None and product.sparse in dot.formats and dot.terms:
            terms += [_in_runs(product, dot, arrays, at) for at in range(product.stripes)]
        elif dot is not None and product.sparse in dot.formats:
            terms.append(lambda z: round_inputs(z, dot.values) @ S.T)
        else:
            terms.append(_linear(S))
    return lambda z: sum((term(z) for term in terms), np.zeros((), "float32"))


def _in_runs(
    product: Product, dot: Dot, arrays: dict[str, np.ndarray], stripe: int
) -> Callable[[np.ndarray], np.ndarray]:
    """S z of blocks, one column after the other, whose first sums are in fp16."""
    a = select(arrays, sparse.prefix(product, stripe))
    count = int(a["block_ptr"][-1])
    values, columns = a["values"][:count].astype("float32"), a["columns"][:count]

    def times(z: np.ndarray) -> np.ndarray:
        sums = runs(dot, values, round_inputs(z, dot.values)[..., columns], a["block_ptr"])
        return sums.reshape(*z.shape[:-1], -1)[..., : product.rows]

    return times


def _linear(W: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda z: z @ W.T


def to_dense(product: Product, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The matrix (rows, columns) that packed arrays stand for."""
    part = product.part
    whole = np.zeros(part.shape, "float32")
    if part.kind != "zero":
        whole += _ROOM[part.kind].to_dense(part, arrays, product.values, DOTS.get(product.dot))
    for at in range(product.stripes if product.sparse is not None else 0):
        packed = sparsity.Packed(
            format=str(product.sparse),
            shape=part.shape,
            nnz=product.nnz,
            arrays=select(arrays, sparse.prefix(product, at)),
            params=_params(product),
            values=product.values,
        )
        whole += sparsity.FORMATS[str(product.sparse)].unpack(packed).toarray()
    return whole


def _params(product: Product) -> dict[str, int]:
    """The packing parameters of S: blocks lie side by side as the instruction takes them."""
    format = str(product.sparse)
    full = {**sparsity.FORMATS[format].defaults, **product.params}
    dot = DOTS.get(product.dot)
    return {**full, "each": dot.each} if dot is not None and format in dot.formats else full


def _striped(S: Any, count: int) -> list[Any]:
    """S (m, n) as `count` matrices of its size, each with a range of its columns."""
    bounds = np.linspace(0, S.shape[1], count + 1).astype(int)
    return [S] if count == 1 else [_kept(S, a, b) for a, b in pairwise(bounds)]


def _kept(S: Any, first: int, end: int) -> Any:
    kept = (S.indices >= first) & (S.indices < end)
    indptr = np.concatenate([[0], np.cumsum(kept)])[S.indptr].astype(S.indptr.dtype)
    return type(S)((S.data[kept], S.indices[kept], indptr), shape=S.shape)


def base_of(structure: Any) -> Any:
    """The structured part: a doped matrix's base, else the matrix itself."""
    return structure.base if structure.kind == "doped" else structure


def part_of(structure: Any) -> Part:
    """The part that describes a structure, with the cheaper order of a Kronecker product."""
    base = base_of(structure)
    dims: tuple[int, ...] = ()
    order: Any = "left"
    if base.kind == "kronecker":
        (m1, n1), (m2, n2) = base.B.shape, base.C.shape
        dims = (int(m1), int(n1), int(m2), int(n2))
        order = "left" if m1 * n2 * (n1 + m2) <= n1 * m2 * (n2 + m1) else "right"
    elif base.kind == "low_rank":
        dims = (int(base.U.shape[1]),)
    elif base.kind == "hybrid":
        dims = (int(base.D.shape[0]), int(base.U.shape[1]))
    return Part(kind=base.kind, shape=(int(base.shape[0]), int(base.shape[1])), dims=dims, order=order)
