"""One row of W from the arrays that its product is packed in: what a table shares with the linear layer that it is tied to.

    y = W[r]        W (V, D) packed by kernels.product for y = W z

A row is one lane of a panel, of a group or of a block, so that its entries lie a register apart: it takes about as long as the
product takes for the rows beside it in that register, of which a table of a vocabulary has hundreds.

Beyond the product's own arrays (`extra`): NAME.places (V,) int32, the lane of each row, where a format sorts its rows; and
V.rows (r, D) of U V, whose V is packed by columns that a row needs all of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels import dense, sparse
from tvm_doping.kernels.emit import Buffer, Expr, Write, address, copy, load, row_times, splat, store
from tvm_doping.kernels.plan import Config, Product
from tvm_doping.kernels.values import widen
from tvm_doping.sparsity.dots import DOTS
from tvm_doping.sparsity.formats.base import LANES
from tvm_doping.sparsity.formats.perm2x32 import Perm2x32
from tvm_doping.sparsity.formats.perm8 import Perm8

# Entries that lie apart are put side by side so many at a time: left to LLVM, it computes the addresses in vectors and takes
# each of them out again.
_APART = 4
Arrays = Mapping[str, Any]
Entry = Callable[[Expr, Expr], None]  # (column, value)


def extra(product: Product, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What reading rows takes beside the product's packed arrays."""
    found: dict[str, np.ndarray] = {}
    if product.part.kind in ("low_rank", "hybrid"):
        whole = dense.matrices(product.part, dict(arrays), product.values, DOTS.get(product.dot))
        found["V.rows"] = whole["V"]
    for at in range(product.stripes if product.sparse is not None else 0):
        prefix = sparse.prefix(product, at)
        rows = arrays.get(prefix + "rows")
        if rows is None or np.array_equal(rows, np.arange(len(rows))):
            continue
        places = np.empty(len(rows), np.int32)
        places[rows] = np.arange(len(rows))
        found[prefix + "places"] = places[: product.rows]
    return found


def structured(product: Product, config: Config, arrays: Arrays, r: Expr, write: Write) -> None:
    """Write row r of the structured part."""
    part, columns = product.part, product.columns
    if part.kind == "zero":
        copy(lambda j, w: splat(0.0, w), write, columns, config.lanes)
    elif part.kind == "kronecker":
        _kronecker(product, config, arrays, r, write)
    elif part.kind == "dense":
        _panel_row(product, arrays, "W", r, columns, write)
    elif part.kind == "low_rank":
        _low_rank(product, config, arrays, r, write)
    else:
        above = part.dims[0]
        with T.If(r < above):
            with T.Then():
                _panel_row(product, arrays, "D", r, columns, write)
            with T.Else():
                _low_rank(product, config, arrays, r - above, write)


def sparse_entries(product: Product, arrays: Arrays, r: Expr, entry: Entry) -> None:
    """Hand over the entries of row r of S, and padding of value 0 at columns that there are."""
    for at in range(product.stripes if product.sparse is not None else 0):
        prefix = sparse.prefix(product, at)
        own = {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
        _ENTRIES[str(product.sparse)](product, own, r, entry)


def _panel_row(product: Product, arrays: Arrays, name: str, r: Expr, columns: int, write: Write) -> None:
    """Row r of a matrix in panels: every `lanes`-th value of one panel."""
    w, scales = arrays[name], arrays.get(name + ".scales")
    each = DOTS[product.dot].each if product.dot else 1
    lanes = int(w.shape[2]) // each
    panel, lane = T.bind(tirx.truncdiv(r, lanes)), T.bind(tirx.truncmod(r, lanes) * each)
    scale = None if scales is None else T.bind(scales[panel])

    def value(j: Expr) -> Expr:
        stored = w[panel, j, lane] if each == 1 else w[panel, j // each, lane + j % each]
        return widen(stored) if scale is None else widen(stored) * scale

    def some(j: Expr, width: int) -> Expr:
        return (
            T.Shuffle([T.bind(value(j + i)) for i in range(width)], list(range(width)))
            if width > 1
            else value(j)
        )

    copy(some, write, columns, _APART)


def _kronecker(product: Product, config: Config, arrays: Arrays, r: Expr, write: Write) -> None:
    """B[r // m2] (x) C[r % m2]: the row of C is a column of Ct."""
    b, ct = arrays["B"], arrays["Ct"]
    _, n1, m2, n2 = product.part.dims
    outer, inner = T.bind(tirx.truncdiv(r, m2)), T.bind(tirx.truncmod(r, m2))
    lanes = config.lanes
    panels = len(b.shape) > 2  # which hold each row of B for every row of W
    panel, lane = (
        (T.bind(tirx.truncdiv(r, lanes)), T.bind(tirx.truncmod(r, lanes))) if panels else (None, None)
    )

    def element(p: Expr) -> Expr:
        return b[panel, p, lane] if panels else b[outer, p]

    if n2 == 1:
        scale = T.bind(ct[0, inner])
        if panels:
            with T.serial(0, n1) as p:
                write(p, scale * element(p), 1)
        else:
            copy(lambda j, w: splat(scale, w) * load(b, j, w, outer), write, n1, lanes)
        return
    c = T.alloc_buffer((n2,), "float32")
    with T.serial(0, n2) as q:
        T.buffer_store(c, ct[q, inner], [q])
    with T.serial(0, n1) as p:
        scale = T.bind(element(p))
        copy(lambda j, w: splat(scale, w) * load(c, j, w), lambda j, v, w: write(p * n2 + j, v, w), n2, lanes)


def _low_rank(product: Product, config: Config, arrays: Arrays, r: Expr, write: Write) -> None:
    """Row r of U, a lane of a panel, times V."""
    rank = product.part.dims[-1]
    u = T.alloc_buffer((rank,), "float32")
    _panel_row(product, arrays, "U", r, rank, lambda p, value, width: store(u, p, value, width))
    row_times(lambda p: u[p], arrays["V.rows"], config, write)


def _lane(arrays: Arrays, r: Expr, size: int) -> tuple[Expr, Expr]:
    """The group of a row among groups of `size`, and its lane."""
    at = address(arrays["places"][r]) if "places" in arrays else r
    return T.bind(tirx.truncdiv(at, size)), T.bind(tirx.truncmod(at, size))


def _run(pointers: Buffer, g: Expr) -> Any:
    """The loop over what is stored of run g."""
    first = address(pointers[g])
    return T.serial(first, address(pointers[g + 1]))


def _value(arrays: Arrays, g: Expr, *index: Expr) -> Expr:
    value = widen(arrays["values"][index])
    return value if "scales" not in arrays else value * arrays["scales"][g]


def _csr(product: Product, arrays: Arrays, r: Expr, entry: Entry) -> None:
    with _run(arrays["indptr"], r) as k:
        entry(address(arrays["indices"][k]), _value(arrays, r, k))


def _sell(product: Product, arrays: Arrays, r: Expr, entry: Entry) -> None:
    g, lane = _lane(arrays, r, int(arrays["values"].shape[1]))
    with _run(arrays["group_ptr"], g) as k:
        entry(address(arrays["indices"][k, lane]), _value(arrays, g, k, lane))


def _perm(product: Product, arrays: Arrays, r: Expr, entry: Entry) -> None:
    """perm32; perm64 and perm2x32, with two entries of a lane in each slot, whose values perm2x32 has in a register an entry."""
    each = int(arrays["values"].shape[1]) // LANES
    g, lane = _lane(arrays, r, LANES)
    with _run(arrays["slot_ptr"], g) as k:
        window = address(arrays["windows"][k])
        for e in range(each):
            at = lane * each + e
            stored = e * LANES + lane if product.sparse == Perm2x32.name else at
            entry(T.bind(window + address(arrays["indices"][k, at])), _value(arrays, g, k, stored))


def _perm8(product: Product, arrays: Arrays, r: Expr, entry: Entry) -> None:
    """The indices of `multiple` slots are in one word of each lane, four bits each."""
    multiple = product.params["multiple"]
    g, lane = _lane(arrays, r, Perm8.reach.lanes)
    with _run(arrays["slot_ptr"], g) as k:
        word = address(arrays["indices"][tirx.truncdiv(k, multiple), lane])
        index = (word >> (tirx.truncmod(k, multiple) * 4)) & tirx.const(Perm8.reach.window - 1, "int64")
        entry(T.bind(address(arrays["windows"][k]) + index), _value(arrays, g, k, lane))


def _block(product: Product, arrays: Arrays, r: Expr, entry: Entry) -> None:
    columns = arrays["columns"]
    each = int(columns.shape[1]) if len(columns.shape) > 1 else 1
    g, lane = _lane(arrays, r, int(arrays["values"].shape[1]) // each)
    with _run(arrays["block_ptr"], g) as k:
        for e in range(each):
            column = columns[k] if each == 1 else columns[k, e]
            entry(address(column), _value(arrays, g, k, lane * each + e))


_ENTRIES: dict[str, Callable[[Product, Arrays, Expr, Entry], None]] = {
    "csr": _csr,
    "sell16": _sell,
    "perm8": _perm8,
    "perm32": _perm,
    "perm64": _perm,
    "perm2x32": _perm,
    "block4": _block,
    "block8": _block,
    "block16": _block,
}
# Formats of S that a row can be read from: of perm32_expand, values without padding, a row has no place.
READABLE = frozenset(_ENTRIES)
