"""Heads over a layer's output while it is in the cache: the largest logits, or probabilities, of one stream or a tile of streams.

    top_k:        values[j], indices[j]: the j-th largest of y and where it stands, of equal ones the first; argmax: k = 1
    softmax:      y <- exp(y - m) / sum exp(y - m), m = max y
    log_softmax:  y <- (y - m) - log sum exp(y - m)

A NaN counts as an infinitely large logit where indices are wanted, and makes all probabilities of its stream NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tvm_doping._tvm import IRBuilder, T, tirx, tvm
from tvm_doping.heads import Head
from tvm_doping.kernels.activations import exp
from tvm_doping.kernels.emit import Buffer, Expr, load, splat, store
from tvm_doping.kernels.plan import Config
from tvm_doping.kernels.scope import Scope, padded
from tvm_doping.kernels.streams import Streams, for_each, row

# Vectors of y that one comparison skips: hardly any block holds one of the k largest, once the first blocks have been seen.
_BLOCK = 8
# Accumulators that do not wait for each other, and terms that are summed before they go to the total: rounding grows with it.
_PARTS, _TERMS = 4, 64


def outputs(head: Head | None, columns: int) -> list[tuple[int, str]]:
    """(columns, dtype) of what a layer of `columns` outputs gives for each row."""
    if head is None or not head.picks:
        return [(columns, "float32")]
    indices = (head.k, "int64")
    return [indices] if head.kind == "argmax" else [(head.k, "float32"), indices]


def reference(head: Head | None, y: np.ndarray) -> list[np.ndarray]:
    """The head in NumPy: y (M, V)."""
    if head is None:
        return [y]
    if head.picks:
        at = np.argsort(-np.where(np.isnan(y), np.inf, y), axis=1, kind="stable")[:, : head.k]
        return [at] if head.kind == "argmax" else [np.take_along_axis(y, at, axis=1), at]
    with np.errstate(invalid="ignore"):  # inf - inf
        shifted = y - y.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True)
    whole = np.exp(shifted) / total if head.kind == "softmax" else shifted - np.log(total)
    return [whole.astype("float32")]


def emit(head: Head | None, rows: int, scope: Scope) -> list[Buffer]:
    """Emit the head over y (rows); the buffers that hold its outputs, laid out as y is. y has slack behind its last row."""
    if head is None:
        return [scope.y]
    if head.picks:
        values, indices = _top_k(head.k, rows, scope)
        return [indices] if head.kind == "argmax" else [values, indices]
    _softmax(rows, scope, logarithm=head.kind == "log_softmax")
    return [scope.y]


def prim_func(head: Head, columns: int, config: Config, name: str = "head") -> tvm.tirx.PrimFunc:
    """The function (x (M, columns), x, *outputs) of a head over rows that no layer of ours makes, M symbolic.

    It takes x twice: of functions that use one input Relax asks whether they are reshapes, and aborts on those without blocks.
    """
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "doping.kernel": "head"})
        rows = tirx.Var("rows", "int64")
        x, again = (T.match_buffer(T.arg(key, T.handle()), (rows, columns)) for key in ("x", "again"))
        results = [
            T.match_buffer(T.arg(f"y{i or ''}", T.handle()), (rows, width), dtype)
            for i, (width, dtype) in enumerate(outputs(head, columns))
        ]

        T.evaluate(again[0, 0])

        def run(streams: Streams) -> None:
            y = padded(columns, streams.width)
            scope = Scope(z=y, y=y, arrays={}, config=config, width=streams.width)
            streams.gather(row(x)[0], y, columns)
            for buffer, result in zip(emit(head, columns, scope), results, strict=True):
                streams.scatter(buffer, row(result)[1], int(result.shape[1]))

        for_each(rows, config.lanes, config.tile, config.tile_from, run)
    return builder.get()


def _top_k(k: int, rows: int, scope: Scope) -> tuple[Buffer, Buffer]:
    """The first k rows sorted by insertion, then each row that is larger than the k-th largest so far put in its place."""
    width, lanes = scope.width, scope.lanes
    values, indices = T.alloc_buffer((k * width,), "float32"), T.alloc_buffer((k * width,), "int64")

    def insert(stream: Expr, place: Expr, r: Expr) -> None:
        T.buffer_store(values, scope.y[r * width + stream], [place * width + stream])
        T.buffer_store(indices, tirx.Cast("int64", r), [place * width + stream])
        if k == 1:
            return
        with T.serial(0, place) as up:
            low = T.bind((place - up) * width + stream)
            high = T.bind(low - width)
            with T.If(_rank(values[low], 1) > _rank(values[high], 1)), T.Then():
                for buffer in (values, indices):
                    lower, higher = T.bind(buffer[low]), T.bind(buffer[high])
                    T.buffer_store(buffer, higher, [low])
                    T.buffer_store(buffer, lower, [high])

    def scan(first: Expr, count: int) -> None:
        with T.serial(0, width) as stream, T.serial(0, count) as i:
            r = T.bind(first + i)
            least = values[(k - 1) * width + stream]
            with T.If(_rank(scope.y[r * width + stream], 1) > _rank(least, 1)), T.Then():
                insert(stream, k - 1, r)

    with T.serial(0, width) as stream, T.serial(0, k) as r:
        insert(stream, r, r)
    rest = rows - k
    step = _BLOCK if width > 1 else _BLOCK * lanes
    if rest >= step:
        with T.serial(0, rest // step) as block:
            first = T.bind(block * step + k)
            with T.If(_any_above(first, values, (k - 1) * width, scope)), T.Then():
                scan(first, step)
    if rest % step:
        scan(rows - rest % step, rest % step)
    return values, indices


def _any_above(first: Expr, values: Buffer, least: int, scope: Scope) -> Expr:
    """Whether a block of rows from `first` on holds a value that ranks above its stream's values[least ...]."""
    lanes = scope.lanes
    found = []
    for v in range(max(1, scope.vectors)):
        stride = scope.width if scope.width > 1 else lanes
        start = T.bind(first * scope.width + v * lanes)
        vectors = [_rank(load(scope.y, start + i * stride, lanes), lanes) for i in range(_BLOCK)]
        bound = load(values, least + v * lanes, lanes) if scope.width > 1 else splat(values[least], lanes)
        above = _pairwise(vectors, tirx.max) > _rank(bound, lanes)
        if lanes > 1:
            above = T.call_llvm_pure_intrin("bool", f"llvm.vector.reduce.or.v{lanes}i1", above)
        found.append(above)
    return _pairwise(found, tirx.any)


def _rank(value: Expr, lanes: int) -> Expr:
    """The value, infinity for a NaN: TVM's min returns its second operand when the comparison fails."""
    return tirx.min(value, splat(math.inf, lanes))


def _softmax(rows: int, scope: Scope, *, logarithm: bool) -> None:
    lanes, single = scope.lanes, scope.width == 1
    count, stride = (-(-rows // lanes), lanes) if single else (rows, scope.width)
    if single:  # the last vector may run over: what lies there adds nothing
        store(scope.y, rows, splat(-math.inf, lanes), lanes)
    for v in range(max(1, scope.vectors)):

        def at(p: Expr, v: int = v) -> Expr:
            return p * stride + v * lanes

        def value(p: Expr) -> Expr:
            return load(scope.y, at(p), lanes)

        def over_lanes(vector: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
            return splat(_across(vector, combine, lanes), lanes) if single else vector

        largest = T.bind(over_lanes(_fold(count, value, tirx.max, -math.inf, lanes), tirx.max))

        def power(p: Expr, largest: Expr = largest) -> Expr:
            e = exp(value(p) - largest, lanes)
            if not logarithm:
                store(scope.y, at(p), e, lanes)
            return e

        total = T.bind(over_lanes(_fold(count, power, _add, 0.0, lanes), _add))
        total = _log(total, lanes) if logarithm else T.bind(splat(1.0, lanes) / total)
        with T.serial(0, count) as p:
            finished = value(p) - largest - total if logarithm else value(p) * total
            store(scope.y, at(p), finished, lanes)


def _fold(
    count: int, value: Callable[[Expr], Expr], combine: Callable[[Expr, Expr], Expr], start: float, lanes: int
) -> Expr:
    """The vectors value(0) .. value(count - 1), combined lane by lane."""
    total, *parts = (T.alloc_buffer((lanes,), "float32") for _ in range(1 + _PARTS))
    store(total, 0, splat(start, lanes), lanes)

    def step(part: Buffer, p: Expr) -> None:
        store(part, 0, combine(load(part, 0, lanes), value(p)), lanes)

    def block(first: Expr, size: int) -> None:
        for part in parts:
            store(part, 0, splat(start, lanes), lanes)
        if size >= _PARTS:
            with T.serial(0, size // _PARTS) as q:
                for i, part in enumerate(parts):
                    step(part, first + q * _PARTS + i)
        for i in range(size % _PARTS):
            step(parts[i], first + (size - size % _PARTS + i))
        together = _pairwise([load(part, 0, lanes) for part in parts], combine)
        store(total, 0, combine(load(total, 0, lanes), together), lanes)

    if count >= _TERMS:
        with T.serial(0, count // _TERMS) as b:
            block(b * _TERMS, _TERMS)
    if count % _TERMS:
        block(count - count % _TERMS, count % _TERMS)
    return T.bind(load(total, 0, lanes))


def _across(vector: Expr, combine: Callable[[Expr, Expr], Expr], lanes: int) -> Expr:
    """All lanes of a vector combined into one value."""
    buffer = T.alloc_buffer((lanes,), "float32")
    store(buffer, 0, vector, lanes)
    return T.bind(_pairwise([buffer[lane] for lane in range(lanes)], combine))


def _log(vector: Expr, lanes: int) -> Expr:
    """The logarithm of each lane, one call each: it is one vector of all the rows'."""
    buffer = T.alloc_buffer((lanes,), "float32")
    store(buffer, 0, vector, lanes)
    with T.serial(0, lanes) as lane:
        T.buffer_store(buffer, tirx.log(buffer[lane]), [lane])
    return T.bind(load(buffer, 0, lanes))


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


def _pairwise(terms: list[Expr], combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combined as a tree: terms do not wait for each other."""
    while len(terms) > 1:
        pairs = range(0, len(terms), 2)
        terms = [combine(*terms[i : i + 2]) if i + 1 < len(terms) else terms[i] for i in pairs]
    return terms[0]
