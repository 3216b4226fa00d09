"""y += (B (x) C) z without forming the product.

With Z (n1, n2) the input, reshaped, and Y (m1, m2) the output: Y = B Z C^T (Van Loan, "The ubiquitous Kronecker product", 2000).
Two small products; which comes first is the plan's `order`, the cheaper of m1 n2 (n1 + m2) and n1 m2 (n2 + m1) multiplications.

Arrays: B (m1, n1) and Ct (n2, m2 rounded up to the lanes), C transposed so that its rows fill vectors, padded with zeros: the
lanes beyond m2 add zeros to the next rows of y, so no store needs a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tvm_doping._tvm import T
from tvm_doping.kernels.emit import Expr, Product2, add, load, matmul, split, store
from tvm_doping.kernels.plan import Config, Part
from tvm_doping.kernels.scope import Scope
from tvm_doping.sparsity.dots import Dot
from tvm_doping.sparsity.values import ValueType


def pack(
    structure: Any, config: Config, values: ValueType = "fp32", dot: Dot | None = None
) -> dict[str, np.ndarray]:
    """The factors as the kernel reads them: in fp32, they are small."""
    c = np.asarray(structure.C, "float32")
    ct = np.zeros((c.shape[1], _up(c.shape[0], config.lanes)), "float32")
    ct[:, : c.shape[0]] = c.T
    return {"B": np.ascontiguousarray(structure.B, "float32"), "Ct": ct}


def to_dense(
    part: Part, arrays: dict[str, np.ndarray], values: ValueType = "fp32", dot: Dot | None = None
) -> np.ndarray:
    """The dense matrix that packed factors stand for."""
    return np.kron(arrays["B"], arrays["Ct"][:, : part.dims[2]].T)


def scratch(part: Part, config: Config, width: int) -> int:
    """Values of the first product's result, for a stream (rows filled up to vectors) or for a tile."""
    m1, n1, m2, n2 = part.dims
    rows, columns = (m1, n2) if part.order == "left" else (n1, m2)
    return rows * (_up(columns, config.lanes) if width == 1 else columns * width)


def emit(part: Part, scope: Scope) -> None:
    """Emit y += (B (x) C) z."""
    b, ct = scope.arrays["B"], scope.arrays["Ct"]
    (_stream if scope.width == 1 else _tile)(part, scope, b, ct)


def _stream(part: Part, scope: Scope, b: Any, ct: Any) -> None:
    m1, n1, m2, n2 = part.dims
    lanes, config = scope.lanes, scope.config
    n2v, m2v = -(-n2 // lanes), -(-m2 // lanes)
    if part.order == "left":
        t = scope.scratch
        matmul(
            Product2(
                m=m1, k=n1, nv=n2v,
                a=lambda i, p: b[i, p],
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
            a=lambda i, p: b[i, p],
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


def _tile(part: Part, scope: Scope, b: Any, ct: Any) -> None:
    m1, n1, m2, n2 = part.dims
    lanes, config, w, wv = scope.lanes, scope.config, scope.width, scope.vectors
    if part.order == "left":
        t = scope.scratch
        matmul(
            Product2(
                m=m1, k=n1, nv=n2 * wv,
                a=lambda i, p: b[i, p],
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
                a=lambda i, p: b[i, p],
                x=lambda p, j: load(u, p * (m2 * w) + j * lanes, lanes),
                out=lambda i, j, value: scope.accumulate(i * m2, value, j),
            ),
            config,
            scope.shared,
        )  # fmt: skip


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
