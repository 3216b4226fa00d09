"""Weights that are written as expressions of their factors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse as sp

from tvm_doping._tvm import op_name, relax
from tvm_doping.passes.evaluate import evaluate
from tvm_doping.structures import Doped, Hybrid, Kronecker, LowRank, Structure, Zero

Definitions = dict[Any, Any]
# Sums in another order round differently: what is matched may differ from the value by so much of its largest entry.
_ROUNDING = 1e-5
# Above this share of nonzeros S is no sparse matrix, and the weight is better searched for another structure.
_DENSEST = 0.5


def match_structure(weight: Any, values: Definitions) -> Structure | None:
    """The structure of base + S, base alone or S alone, where base is a Kronecker product, a low-rank product or a hybrid
    of fixed factors, and S any fixed expression; None for other expressions, and constants.
    """
    for base, rest in _terms(weight, values):
        structured = _base(base, values)
        if structured is None:
            continue
        S = np.zeros(structured.shape, "float32") if rest is None else evaluate(rest, values)
        value = evaluate(weight, values)
        if S is None or value is None or S.shape != structured.shape:
            continue
        if np.count_nonzero(S) > _DENSEST * S.size:
            continue
        found = Doped(structured, sp.csr_array(S))
        if np.abs(found.to_dense() - value).max() <= _ROUNDING * np.abs(value).max():
            return found
    return _masked(weight, values)


def _masked(weight: Any, values: Definitions) -> Structure | None:
    """S * mask alone."""
    expr = _value(weight, values)
    if op_name(expr) != "relax.multiply":
        return None
    S = evaluate(expr, values)
    if S is None or S.ndim != 2 or np.count_nonzero(S) > _DENSEST * S.size:
        return None
    return Doped(Zero((S.shape[0], S.shape[1])), sp.csr_array(S))


def _terms(weight: Any, values: Definitions) -> Iterator[tuple[Any, Any]]:
    """(base, rest) as they may stand in a sum, in either order; (weight, None) if it is none."""
    expr = _value(weight, values)
    if op_name(expr) == "relax.add":
        yield expr.args[0], expr.args[1]
        yield expr.args[1], expr.args[0]
    else:
        yield weight, None


def _base(expr: Any, values: Definitions) -> Structure | None:
    return _kronecker(expr, values) or _low_rank(expr, values) or _hybrid(expr, values)


def _kronecker(expr: Any, values: Definitions) -> Kronecker | None:
    """reshape(B (m1, 1, n1, 1) * C (1, m2, 1, n2)) to (m1*m2, n1*n2): how torch.kron is decomposed."""
    whole = _value(expr, values)
    if op_name(whole) != "relax.reshape":
        return None
    product = _value(whole.args[0], values)
    if op_name(product) != "relax.multiply" or len(product.ty.shape) != 4:
        return None
    B, C = (evaluate(factor, values) for factor in product.args)
    if B is None or C is None:
        return None
    if B.shape[1] != 1 or B.shape[3] != 1:
        B, C = C, B
    if B.shape[1::2] != (1, 1) or C.shape[0::2] != (1, 1):
        return None
    B, C = B[:, 0, :, 0], C[0, :, 0, :]
    wanted = (B.shape[0] * C.shape[0], B.shape[1] * C.shape[1])
    return Kronecker(B, C) if tuple(int(d) for d in whole.ty.shape) == wanted else None


def _low_rank(expr: Any, values: Definitions) -> LowRank | None:
    product = _value(expr, values)
    if op_name(product) != "relax.matmul":
        return None
    U, V = (evaluate(factor, values) for factor in product.args)
    return LowRank(U, V) if U is not None and V is not None and U.ndim == V.ndim == 2 else None


def _hybrid(expr: Any, values: Definitions) -> Hybrid | None:
    """concat((D, U V)) of rows."""
    whole = _value(expr, values)
    if op_name(whole) != "relax.concat" or int(whole.attrs.axis) != 0:
        return None
    parts = _value(whole.args[0], values)
    if not isinstance(parts, relax.Tuple) or len(parts.fields) != 2:
        return None
    D, below = evaluate(parts.fields[0], values), _low_rank(parts.fields[1], values)
    return Hybrid(D, below.U, below.V) if D is not None and below is not None else None


def _value(expr: Any, values: Definitions) -> Any:
    return values.get(expr, expr) if isinstance(expr, relax.Var) else expr
