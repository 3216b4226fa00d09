"""Reductions of TVM's own loops in vectors: what LLVM leaves scalar, since it may not change the order of float32 sums.

for k: y = y + f(k)                      -> lanes and parts of y side by side, f with consecutive k in a vector
for k: for v: y[v] = y[v] + f(k, v)      -> four k in each pass over y, which LLVM vectorises over v
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm_ffi

from tvm_doping._tvm import tirx, tvm
from tvm_doping.kernels.emit import Buffer, Expr
from tvm_doping.kernels.trees import found, replaced, uses

# Vectors whose sums do not wait for each other: an addition takes four cycles.
_PARTS = 4
# Terms of an element's sum in one pass over the elements, which loads and stores each once; all of them, if they are few.
_TERMS, _FEW = 4, 8
_IDENTITIES: dict[type, float] = {tirx.Add: 0.0, tirx.Max: -float("inf"), tirx.Min: float("inf")}


@dataclass(frozen=True, kw_only=True)
class Sum:
    """buffer[index] = combine(buffer[index], term): one step of a reduction, by Add, Max or Min."""

    buffer: Buffer
    index: list[Expr]
    term: Expr
    combine: type

    def store(self, *terms: Expr) -> Any:
        """The statement with these terms."""
        value = tirx.BufferLoad(self.buffer, self.index)
        for term in terms:
            value = self.combine(value, term)
        return tirx.BufferStore(self.buffer, value, self.index)


def vectorize_reductions(function: tvm.tirx.PrimFunc, lanes: int) -> tvm.tirx.PrimFunc:
    """The function, lowered to loops over flat buffers, with its float32 reductions in vectors of `lanes`."""

    def visit(loop: Any) -> Any:
        if loop.kind != tirx.ForKind.SERIAL or loop.step is not None:
            return loop
        if isinstance(loop.body, tirx.For):
            return _jammed(loop, loop.body)
        return _across(loop, lanes)

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, visit)))


def _across(loop: Any, lanes: int) -> Any:
    """A reduction into one place over consecutive values."""
    step = _sum(loop.body)
    k, extent = loop.loop_var, loop.extent
    if step is None or any(uses(index, k) for index in step.index) or not _consecutive(step.term, k):
        return loop
    if isinstance(extent, tirx.IntImm) and int(extent) < 2 * lanes:
        return loop
    kind = k.ty.dtype
    parts = [tirx.decl_buffer((lanes,), "float32", f"part{i}") for i in range(_PARTS)]

    def vector(value: Callable[[Expr], Any]) -> Any:
        lane = tirx.Var("lane", kind)
        return tirx.For(lane, _int(0, kind), _int(lanes, kind), tirx.ForKind.VECTORIZED, value(lane))

    def accumulate(part: Buffer, first: Expr) -> Any:
        def body(lane: Expr) -> Any:
            return Sum(buffer=part, index=[lane], term=None, combine=step.combine).store(
                replaced(step.term, k, first + lane)
            )

        return vector(body)

    def start(part: Buffer) -> Any:
        return vector(
            lambda lane: tirx.BufferStore(part, tirx.const(_IDENTITIES[step.combine], "float32"), [lane])
        )

    block, whole = tirx.Var("block", kind), tirx.Var("vector", kind)
    blocks = tirx.floordiv(extent, _PARTS * lanes)
    vectors = tirx.floordiv(extent, lanes)
    lanes_of = [tirx.BufferLoad(part, [_int(i, kind)]) for i in range(lanes) for part in parts]
    return tirx.SeqStmt(
        [
            *(tirx.AllocBuffer(part) for part in parts),
            *map(start, parts),
            _serial(
                block,
                blocks,
                tirx.SeqStmt([accumulate(p, (block * _PARTS + i) * lanes) for i, p in enumerate(parts)]),
            ),
            _serial(
                whole, vectors - blocks * _PARTS, accumulate(parts[0], (blocks * _PARTS + whole) * lanes)
            ),
            step.store(_pairwise(lanes_of, step.combine)),
            _rest(loop, vectors * lanes),
        ]
    )


def _jammed(loop: Any, inner: Any) -> Any:
    """A reduction into each of many places, one after the other."""
    step = _sum(inner.body)
    k, extent = loop.loop_var, loop.extent
    if (
        step is None
        or inner.kind != tirx.ForKind.SERIAL
        or any(uses(e, k) for e in (*step.index, inner.extent, inner.min))
    ):
        return loop
    few = isinstance(extent, tirx.IntImm) and int(extent) <= _FEW
    terms = int(extent) if few else _TERMS
    if terms < 2:
        return loop
    kind = k.ty.dtype
    block = tirx.Var("block", kind)
    body = step.store(*(replaced(step.term, k, block * terms + i) for i in range(terms)))
    blocks = tirx.floordiv(extent, terms)
    whole = _serial(block, blocks, tirx.For(inner.loop_var, inner.min, inner.extent, inner.kind, body))
    return whole if few else tirx.SeqStmt([whole, _rest(loop, blocks * terms)])


def _sum(stmt: Any) -> Sum | None:
    if not isinstance(stmt, tirx.BufferStore) or type(stmt.value) not in _IDENTITIES:
        return None
    if str(stmt.buffer.dtype) != "float32" or len(stmt.indices) != 1:
        return None
    for old, term in ((stmt.value.a, stmt.value.b), (stmt.value.b, stmt.value.a)):
        if (
            isinstance(old, tvm.ir.TensorLoad)
            and old.source.same_as(stmt.buffer)
            and tvm_ffi.structural_equal(list(old.indices), list(stmt.indices))
            and not any(load.source.same_as(stmt.buffer) for load in found(term, tvm.ir.TensorLoad))
        ):
            return Sum(buffer=stmt.buffer, index=list(stmt.indices), term=term, combine=type(stmt.value))
    return None


def _consecutive(term: Expr, k: Any) -> bool:
    """Whether every load of the term moves by one value, or none, with k, and one does."""
    analyzer = tvm.sym.Analyzer()
    strides = set()
    for load in found(term, tvm.ir.TensorLoad):
        (index,) = load.indices
        stride = analyzer.simplify(replaced(index, k, k + 1) - index)
        strides.add(int(stride) if isinstance(stride, tirx.IntImm) else None)
    return strides <= {0, 1} and 1 in strides


def _rest(loop: Any, done: Expr) -> Any:
    """The loop from `done` on."""
    var = tirx.Var("rest", str(done.ty.dtype))
    return _serial(var, loop.extent - done, replaced(loop.body, loop.loop_var, done + var))


def _serial(var: Any, extent: Expr, body: Any) -> Any:
    return tirx.For(var, _int(0, str(extent.ty.dtype)), extent, tirx.ForKind.SERIAL, body)


def _pairwise(terms: list[Expr], combine: type) -> Expr:
    while len(terms) > 1:
        terms = [
            combine(*terms[i : i + 2]) if i + 1 < len(terms) else terms[i] for i in range(0, len(terms), 2)
        ]
    return terms[0]


def _int(value: int, kind: Any) -> Expr:
    return tirx.const(value, str(kind))
