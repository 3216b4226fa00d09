"""y += (B (x) C) z without forming the product.

With Z (n1, n2) the input, reshaped, and Y (m1, m2) the output: Y = B Z C^T (Van Loan, "The ubiquitous Kronecker product", 2000).
Two small products; which comes first is the plan's `order`, the cheaper of m1 n2 (n1 + m2) and n1 m2 (n2 + m1) multiplications.

Arrays: B (m1, n1) and Ct (n2, m2 rounded up to the lanes), C transposed so that its rows fill vectors, padded with zeros: the
lanes beyond m2 add zeros to the next rows of y, so no store needs a mask.

Where several rows of Y fill a vector (m2 a part of the lanes), such stores would overlap, and each load of y wait for the store
before it. B is then stored in panels as kernels.dense has them, each row m2 times: (ceil(m1 m2 / lanes), n1, lanes).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tvm_doping._tvm import T
from tvm_doping.kernels.dense import panels
from tvm_doping.kernels.emit import Expr, Product2, Registers, add, blocks, load, matmul, splat, split, store
from tvm_doping.kernels.plan import Config, Part
from tvm_doping.kernels.scope import Scope
from tvm_doping.sparsity.dots import Dot
from tvm_doping.sparsity.values import ValueType

Element = Callable[[Expr, Expr], Expr]
_CHAINS = 8  # of FMAs that do not wait for each other: two a cycle of four cycles


def pack(
    structure: Any, config: Config, values: ValueType = "fp32", dot: Dot | None = None
) -> dict[str, np.ndarray]:
    """The factors as the kernel reads them: in fp32, they are small."""
    c = np.asarray(structure.C, "float32")
    ct = np.zeros((c.shape[1], _up(c.shape[0], config.lanes)), "float32")
    ct[:, : c.shape[0]] = c.T
    b = np.asarray(structure.B, "float32")
    if _narrow(c.shape[0], config.lanes):
        return {"B": panels(np.repeat(b, c.shape[0], axis=0), config.lanes), "Ct": ct}
    return {"B": np.ascontiguousarray(b), "Ct": ct}


def to_dense(
    part: Part, arrays: dict[str, np.ndarray], values: ValueType = "fp32", dot: Dot | None = None
) -> np.ndarray:
    """The dense matrix that packed factors stand for."""
    m1, n1, m2, _ = part.dims
    b = arrays["B"]
    if b.ndim > 2:
        b = b.transpose(0, 2, 1).reshape(-1, n1)[: m1 * m2 : m2]
    return np.kron(b, arrays["Ct"][:, :m2].T)


def scratch(part: Part, config: Config, width: int) -> int:
    """Values of the first product's result, for a stream (rows filled up to vectors) or for a tile."""
    m1, n1, m2, n2 = part.dims
    rows, columns = (m1, n2) if part.order == "left" else (n1, m2)
    return rows * (_up(columns, config.lanes) if width == 1 else columns * width)


def emit(part: Part, scope: Scope) -> None:
    """Emit y += (B (x) C) z."""
    b, ct = scope.arrays["B"], scope.arrays["Ct"]
    m2 = part.dims[2]

    def element(i: Expr, p: Expr) -> Expr:
        """B[i, p]."""
        return b[i * m2 // scope.lanes, p, i * m2 % scope.lanes] if len(b.shape) > 2 else b[i, p]

    if scope.width > 1:
        _tile(part, scope, element, ct)
    elif part.order == "right" and _narrow(m2, scope.lanes):
        _narrow_stream(part, scope, b, ct)
    else:
        _stream(part, scope, element, ct)


def _narrow(m2: int, lanes: int) -> bool:
    """Whether a vector of y holds several rows of Y, all of the same lanes."""
    return m2 < lanes and lanes % m2 == 0


def _narrow_stream(part: Part, scope: Scope, b: Any, ct: Any) -> None:
    """U = Z C^T, each row as often as a vector takes it; then y, a panel of B's repeated rows at a time."""
    _, n1, m2, n2 = part.dims
    lanes, u = scope.lanes, scope.scratch
    with split(n1, scope.shared) as p:
        sums = Registers(min(_CHAINS, n2), lanes)

        def term(q: Expr, chain: int) -> None:
            sums.fma(chain, splat(scope.z[p * n2 + q], lanes), load(ct, 0, lanes, row=q))

        whole = n2 // _CHAINS
        if whole:
            with T.serial(0, whole) as block:
                for chain in range(_CHAINS):
                    term(block * _CHAINS + chain, chain)
        for q in range(whole * _CHAINS, n2):
            term(q, q % _CHAINS)
        row = T.bind(sums.total())
        store(u, p * lanes, T.Shuffle([row], [lane % m2 for lane in range(lanes)]), lanes)

    def group(first: Expr, size: int) -> None:
        sums = Registers(size, lanes)
        with T.serial(0, n1) as p:
            row = T.bind(load(u, p * lanes, lanes))
            for i in range(size):
                sums.fma(i, b[first + i, p, T.Ramp(0, 1, lanes)], row)
        for i in range(size):
            scope.accumulate((first + i) * lanes, sums[i])

    blocks(int(b.shape[0]), _CHAINS, group, scope.shared)


def _stream(part: Part, scope: Scope, b: Element, ct: Any) -> None:
    m1, n1, m2, n2 = part.dims
    lanes, config = scope.lanes, scope.config
    n2v, m2v = -(-n2 // lanes), -(-m2 // lanes)
    if part.order == "left":
        t = scope.scratch
        matmul(
            Product2(
                m=m1, k=n1, nv=n2v,
                a=b,
                x=lambda p, j: scope.input(p * n2 + j * lanes),
                out=lambda i, j, value: store(t, (i * n2v + j) * lanes, value, lanes),
            ),
            config,
            scope.shared,
        )  # fmt: skip
        _columns(
            m1, n2, m2, scope,
            a=lambda i, q: t[i * (n2v * lanes) + q],
            x=lambda q, j: load(ct, j * lanes, lanes, row=q),
        )  # fmt: skip
    else:
        u = scope.scratch
        matmul(
            Product2(
                m=n1, k=n2, nv=m2v,
                a=lambda p, q: scope.z[p * n2 + q],
                x=lambda q, j: load(ct, j * lanes, lanes, row=q),
                out=lambda p, j, value: store(u, (p * m2v + j) * lanes, value, lanes),
            ),
            config,
            scope.shared,
        )  # fmt: skip
        _columns(
            m1, n1, m2, scope,
            a=b,
            x=lambda p, j: load(u, (p * m2v + j) * lanes, lanes),
        )  # fmt: skip


def _columns(
    m1: int,
    k: int,
    m2: int,
    scope: Scope,
    *,
    a: Callable[[Expr, Expr], Expr],
    x: Callable[[Expr, Expr], Expr],
) -> None:
    """The second product: y[i * m2 + j] += sum over k of a(i, k) x(k, j).

    Threads that share it must not touch each other's rows, not even to add zeros: the padded vector is then a product of its own.
    """
    lanes, config = scope.lanes, scope.config
    whole, rest = divmod(m2, lanes)
    together = whole if scope.shared else -(-m2 // lanes)
    if together:
        matmul(
            Product2(
                m=m1, k=k, nv=together, a=a, x=x,
                out=lambda i, j, value: scope.accumulate(i * m2 + j * lanes, value),
            ),
            config,
            scope.shared,
        )  # fmt: skip
    if rest and scope.shared:
        matmul(
            Product2(
                m=m1, k=k, nv=1, a=a, x=lambda p, j: x(p, whole),
                out=lambda i, j, value: _add_first(scope, i * m2 + whole * lanes, value, rest),
            ),
            config,
            scope.shared,
        )  # fmt: skip


def _add_first(scope: Scope, at: Expr, vector: Expr, count: int) -> None:
    """y[at : at + count] += the first lanes of a vector, through memory."""
    lanes = T.alloc_buffer((scope.lanes,), "float32")
    store(lanes, 0, vector, scope.lanes)
    for i in range(count):
        add(scope.y, at + i, lanes[i], 1)


def _tile(part: Part, scope: Scope, b: Element, ct: Any) -> None:
    m1, n1, m2, n2 = part.dims
    lanes, config, w, wv = scope.lanes, scope.config, scope.width, scope.vectors
    if part.order == "left":
        t = scope.scratch
        matmul(
            Product2(
                m=m1, k=n1, nv=n2 * wv,
                a=b,
                x=lambda p, j: scope.input(p * n2, j),
                out=lambda i, j, value: store(t, i * (n2 * w) + j * lanes, value, lanes),
            ),
            config,
            scope.shared,
        )  # fmt: skip
        with split(m1, scope.shared) as i:
            matmul(
                Product2(
                    m=m2, k=n2, nv=wv,
                    a=lambda r, q: ct[q, r],
                    x=lambda q, j: load(t, (i * n2 + q) * w + j * lanes, lanes),
                    out=lambda r, j, value: scope.accumulate(i * m2 + r, value, j),
                ),
                config,
            )  # fmt: skip
    else:
        u = scope.scratch
        with split(n1, scope.shared) as p:
            matmul(
                Product2(
                    m=m2, k=n2, nv=wv,
                    a=lambda r, q: ct[q, r],
                    x=lambda q, j: scope.input(p * n2 + q, j),
                    out=lambda r, j, value: store(u, (p * m2 + r) * w + j * lanes, value, lanes),
                ),
                config,
            )  # fmt: skip
        matmul(
            Product2(
                m=m1, k=n1, nv=m2 * wv,
                a=b,
                x=lambda p, j: load(u, p * (m2 * w) + j * lanes, lanes),
                out=lambda i, j, value: scope.accumulate(i * m2, value, j),
            ),
            config,
            scope.shared,
        )  # fmt: skip


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
