"""The shared memory that a block cannot do without, from the numbers of a plan alone: before anything is packed or compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tvm_doping.kernels.cuda.operand import Operand
from tvm_doping.kernels.cuda.parts import LOW_RANK, Cut, needed
from tvm_doping.kernels.cuda.words import WARP, Arena
from tvm_doping.kernels.plan import Part, Product


def room(products: Sequence[Product], cut: Cut, threads: int) -> int:
    """Bytes that each kernel of a layer with these products stays within, what it may stage left out.

    One stream: z, sums and first products of all products side by side. 32 streams: the sums of a part's rows, and the first
    products. A sequence, which has the recurrent product alone, takes less than a step.
    """
    stream, tile = Arena(), Arena()
    tile.take(cut.rows * WARP)
    for product in products:
        # the format of S decides what is staged alone
        operand = Operand(replace(product, sparse=None), _shapes(product.part, cut), {}, cut, threads)
        stream.take(product.columns)
        operand.take_stream(stream)
        operand.take_tile(tile)
        if operand.low_rank is not None:
            terms = operand.low_rank.splits * operand.low_rank.each
            stream.take(terms)
            tile.take(terms * WARP)
    return max(stream.bytes, tile.bytes)


def _shapes(part: Part, cut: Cut) -> dict[str, np.ndarray]:
    """Arrays of the shapes that `parts.pack` gives a structure, without their values: what an operand takes room by."""

    def shape(*sizes: int) -> np.ndarray:
        return np.broadcast_to(np.float32(0), sizes)

    if part.kind == "kronecker":
        _, n1, _, n2 = part.dims
        rows = needed(part, cut)[part.order == "right"]
        k, q = (n1, n2) if part.order == "left" else (n2, n1)
        return {"first": shape(cut.parts, rows, k), "second": shape(1, q)}
    return {"V": shape(sum(part.dims), part.shape[1])} if part.kind in LOW_RANK else {}
