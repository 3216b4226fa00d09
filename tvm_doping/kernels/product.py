"""A whole product y += (structured parts) z + S z: packing, the emitted code, and the NumPy reference on packed arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse as sp

from tvm_doping import sparsity
from tvm_doping._tvm import T
from tvm_doping.kernels import dense, kronecker, sparse
from tvm_doping.kernels.emit import Buffer, copy, load, splat, store
from tvm_doping.kernels.plan import Config, Part, Product
from tvm_doping.kernels.scope import Scope

_ROOM: dict[str, Any] = {"kronecker": kronecker, "dense": dense, "low_rank": dense, "hybrid": dense}


def pack(product: Product, structures: Sequence[Any], config: Config) -> dict[str, np.ndarray]:
    """The arrays of a product: each part's factors under "<index>.", S of all parts side by side under "S."."""
    arrays: dict[str, np.ndarray] = {}
    for i, (part, structure) in enumerate(zip(product.parts, structures, strict=True)):
        if part.kind != "zero":
            for name, array in _ROOM[part.kind].pack(base_of(structure), config).items():
                arrays[f"{i}.{name}"] = array
    if product.sparse is not None:
        s = concatenate(product, [sparse_of(structure) for structure in structures])
        packed = sparsity.FORMATS[product.sparse].pack(s, **product.params)
        arrays |= {"S." + name: array for name, array in packed.arrays.items()}
    return arrays


def concatenate(product: Product, matrices: Sequence[Any]) -> sp.csr_array:
    """The S of every part at its part's columns, as one matrix (rows, columns)."""
    blocks, at = [], 0
    for part, matrix in zip(product.parts, matrices, strict=True):
        if part.offset > at:
            blocks.append(sp.csr_array((product.rows, part.offset - at), dtype="float32"))
        blocks.append(matrix if matrix is not None else sp.csr_array(part.shape, dtype="float32"))
        at = part.offset + part.shape[1]
    if product.columns > at:
        blocks.append(sp.csr_array((product.rows, product.columns - at), dtype="float32"))
    whole = sp.csr_array(sp.hstack(blocks, format="csr"))
    whole.sort_indices()
    return whole


def emit(product: Product, scope: Scope) -> None:
    """Emit y += (structured parts) z + S z. The structured parts come first: they may write zeros beyond their rows."""
    for i, part in enumerate(product.parts):
        if part.kind != "zero":
            _ROOM[part.kind].emit(part, scope, f"{i}.")
    sparse.emit(product, scope)


def parameters(arrays: Mapping[str, np.ndarray]) -> dict[str, Buffer]:
    """One argument of the function being built for each packed array, in order."""

    def argument(name: str, array: np.ndarray) -> Buffer:
        return T.match_buffer(T.arg("p_" + name.replace(".", "_"), T.handle()), array.shape, str(array.dtype))

    return {name: argument(name, array) for name, array in arrays.items()}


def set_bias(product: Product, scope: Scope) -> None:
    """Emit y = bias, the same for every stream of a tile."""
    bias, lanes = scope.arrays["bias"], scope.lanes
    if scope.width == 1:
        copy(lambda i, w: load(bias, i, w), lambda i, v, w: store(scope.y, i, v, w), product.rows, lanes)
        return
    with T.serial(0, product.rows) as r:
        for v in range(scope.vectors):
            store(scope.y, r * scope.width + v * lanes, splat(bias[r], lanes), lanes)


def to_dense(product: Product, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The matrix (rows, columns) that packed arrays stand for."""
    whole = np.zeros((product.rows, product.columns), "float32")
    for i, part in enumerate(product.parts):
        if part.kind != "zero":
            own = {name.split(".", 1)[1]: array for name, array in arrays.items() if name.startswith(f"{i}.")}
            whole[:, part.offset : part.offset + part.shape[1]] += _ROOM[part.kind].to_dense(part, own)
    if product.sparse is not None:
        packed = sparsity.Packed(
            format=product.sparse,
            shape=(product.rows, product.columns),
            nnz=product.nnz,
            arrays={name[2:]: array for name, array in arrays.items() if name.startswith("S.")},
            params=dict(product.params),
        )
        whole += sparsity.FORMATS[product.sparse].unpack(packed).toarray()
    return whole


def base_of(structure: Any) -> Any:
    """The structured part: a doped matrix's base, else the matrix itself."""
    return structure.base if structure.kind == "doped" else structure


def sparse_of(structure: Any) -> sp.csr_array | None:
    """The sparse part, or None."""
    return structure.S if structure.kind == "doped" else None


def part_of(structure: Any, offset: int = 0) -> Part:
    """The part that describes a structure, with the cheaper order of a Kronecker product."""
    base = base_of(structure)
    m, n = (int(v) for v in base.shape)
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
    return Part(kind=base.kind, shape=(m, n), offset=offset, dims=dims, order=order)
