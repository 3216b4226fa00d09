"""y += (B (x) C) z without forming the product.

With Z (n1, n2) the input, reshaped, and Y (m1, m2) the output: Y = B Z C^T (Van Loan, "The ubiquitous Kronecker product", 2000).
Two small products; which comes first is the plan's `order`, the cheaper of m1 n2 (n1 + m2) and n1 m2 (n2 + m1) multiplications.

Arrays: B (m1, n1) and Ct (n2, m2 rounded up to the lanes), C transposed so that its rows fill vectors, padded with zeros: the
lanes beyond m2 add zeros to the next rows of y, so no store needs a mask.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_doping._tvm import T
from tvm_doping.kernels.emit import Product2, load, matmul, store
from tvm_doping.kernels.plan import Config, Part
from tvm_doping.kernels.scope import Scope
from tvm_doping.sparsity.values import ValueType


def pack(structure: Any, config: Config, values: ValueType = "fp32") -> dict[str, np.ndarray]:
    """The factors as the kernel reads them: in fp32, they are small."""
    c = np.asarray(structure.C, "float32")
    ct = np.zeros((c.shape[1], _up(c.shape[0], config.lanes)), "float32")
    ct[:, : c.shape[0]] = c.T
    return {"B": np.ascontiguousarray(structure.B, "float32"), "Ct": ct}


def to_dense(part: Part, arrays: dict[str, np.ndarray], values: ValueType = "fp32") -> np.ndarray:
    """The dense matrix that packed factors stand for."""
    return np.kron(arrays["B"], arrays["Ct"][:, : part.dims[2]].T)


def emit(part: Part, scope: Scope) -> None:
    """Emit y += (B (x) C) z."""
    b, ct = scope.arrays["B"], scope.arrays["Ct"]
    (_stream if scope.width == 1 else _tile)(part, scope, b, ct)


def _stream(part: Part, scope: Scope, b: Any, ct: Any) -> None:
    m1, n1, m2, n2 = part.dims
    lanes, config = scope.lanes, scope.config
    n2v, m2v = -(-n2 // lanes), -(-m2 // lanes)
    if part.order == "left":
        t = T.alloc_buffer((m1 * n2v * lanes,), "float32")
        matmul(
            Product2(
                m=m1, k=n1, nv=n2v,
                a=lambda i, p: b[i, p],
                x=lambda p, j: scope.input(p * n2 + j * lanes),
                out=lambda i, j, value: store(t, (i * n2v + j) * lanes, value, lanes),
            ),
            config,
        )  # fmt: skip
        matmul(
            Product2(
                m=m1, k=n2, nv=m2v,
                a=lambda i, q: t[i * (n2v * lanes) + q],
                x=lambda q, j: load(ct, j * lanes, lanes, row=q),
                out=lambda i, j, value: scope.accumulate(i * m2 + j * lanes, value),
            ),
            config,
        )  # fmt: skip
    else:
        u = T.alloc_buffer((n1 * m2v * lanes,), "float32")
        matmul(
            Product2(
                m=n1, k=n2, nv=m2v,
                a=lambda p, q: scope.z[p * n2 + q],
                x=lambda q, j: load(ct, j * lanes, lanes, row=q),
                out=lambda p, j, value: store(u, (p * m2v + j) * lanes, value, lanes),
            ),
            config,
        )  # fmt: skip
        matmul(
            Product2(
                m=m1, k=n1, nv=m2v,
                a=lambda i, p: b[i, p],
                x=lambda p, j: load(u, (p * m2v + j) * lanes, lanes),
                out=lambda i, j, value: scope.accumulate(i * m2 + j * lanes, value),
            ),
            config,
        )  # fmt: skip


def _tile(part: Part, scope: Scope, b: Any, ct: Any) -> None:
    m1, n1, m2, n2 = part.dims
    lanes, config, w, wv = scope.lanes, scope.config, scope.width, scope.vectors
    if part.order == "left":
        t = T.alloc_buffer((m1 * n2 * w,), "float32")
        matmul(
            Product2(
                m=m1, k=n1, nv=n2 * wv,
                a=lambda i, p: b[i, p],
                x=lambda p, j: scope.input(p * n2, j),
                out=lambda i, j, value: store(t, i * (n2 * w) + j * lanes, value, lanes),
            ),
            config,
        )  # fmt: skip
        with T.serial(0, m1) as i:
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
        u = T.alloc_buffer((n1 * m2 * w,), "float32")
        with T.serial(0, n1) as p:
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
        )  # fmt: skip


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
