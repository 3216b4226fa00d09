"""What this machine's core can do at most, measured: bytes read a second from each cache level, and multiply-adds a second.

`bound` is the roofline of a compiled model: the least time that its bytes, its look-ups and its multiply-adds can take.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_doping._tvm import IRBuilder, T, tensor, tvm
from tvm_doping.kernels.emit import Registers, load, store
from tvm_doping.kernels.lowering import TIR_PIPELINE
from tvm_doping.kernels.plan import LstmPlan, Product
from tvm_doping.targets import Target

if TYPE_CHECKING:
    from tvm_doping.bundle import Bundle

# Independent chains: two units with a latency of four or five cycles are full, and 16 registers hold them with two operands.
_CHAINS = 12
_SECONDS, _ROUNDS = 0.02, 7
_OF_LEVEL = 0.5  # a buffer of half a level's size lies in it whole, whatever else is there
_BEYOND = 4  # times the last level: the buffer of which memory is read
# fp32 multiply-adds a core starts a cycle, in vectors: two units since Haswell and Zen, one of them joined for 512 bits at times.
_UNITS = 2


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """gbs: gigabytes a second that one core reads from "L1", "L2", "L3" and "memory"; sizes: bytes of the caches;

    gmacs: 10^9 fp32 multiply-adds a second; lanes: fp32 values of a vector.
    """

    gbs: dict[str, float]
    sizes: dict[str, int]
    gmacs: float
    lanes: int

    def to_dict(self) -> dict[str, Any]:
        """As plain data; Ceilings(**data) is the same again."""
        return asdict(self)

    def level(self, size: float) -> str:
        """The smallest level that holds so many bytes."""
        return next((name for name, capacity in self.sizes.items() if size <= capacity), "memory")


def measure(target: Target) -> Ceilings:
    """Measure the core this process is held to, with kernels compiled for the target. Takes about two seconds."""
    caches = {"L1": target.l1, "L2": target.l2, "L3": target.l3}
    sizes = {name: size for name, size in caches.items() if size}
    last = max(sizes.values(), default=0)
    buffers = {name: _OF_LEVEL * size for name, size in sizes.items()}
    buffers["memory"] = float(_BEYOND * max(last, 1 << 24))
    library = _library(target)
    gbs = {name: _rate(library["read"], target, int(size)) * 4 / 1e9 for name, size in buffers.items()}
    width = 4 * target.lanes * _CHAINS
    gmacs = _rate(library["multiply"], target, width * 64) / 1e9
    return Ceilings(gbs=gbs, sizes=sizes, gmacs=gmacs, lanes=target.lanes)


def bound(bundle: Bundle, ceilings: Ceilings, *, steps: int, batch: int, threads: int = 1) -> dict[str, Any]:
    """The roofline of LSTM layers: {"us", "by": "reading" | "looking up" | "multiplying", "bytes", "macs", "level"}.

    reading      W_hh once a step and W_ih once a call, over the bandwidth of the level that holds all weights;
    looking up   nonzeros of one lone stream over what the format looks up a cycle;
    multiplying  all multiply-adds over the FMA peak.

    So many threads share each of these evenly, and each reads its share of the weights from the level that holds that.
    """
    cycles_a_us = 1e3 * ceilings.gmacs / (_UNITS * ceilings.lanes)
    read, macs, looked_up = 0.0, 0.0, 0.0
    for layer in bundle.manifest.layers:
        plan = LstmPlan.from_json(json.dumps(layer.plan))
        for prefix, product, times in (("ih", plan.input, 1), ("hh", plan.recurrent, steps)):
            of = f"{layer.name}.{prefix}."
            read += times * sum(a.nbytes for name, a in bundle.weights.items() if name.startswith(of))
            macs += steps * batch * (product.nnz + _multiplications(product))
            # the input projection of many steps is a tile: each nonzero then serves a vector of steps, no look-up
            alone = batch == 1 and (prefix == "hh" or steps == 1)
            looked_up += steps * product.nnz / _looked_up(product.sparse, ceilings.lanes) if alone else 0.0
    level = ceilings.level(bundle.bytes / threads)
    us = {
        "reading": read / ceilings.gbs[level] / 1e3,
        "looking up": looked_up / cycles_a_us,
        "multiplying": macs / ceilings.gmacs / 1e3,
    }
    by = max(us, key=lambda name: us[name])
    return {"us": us[by] / threads, "by": by, "bytes": int(read), "macs": int(macs), "level": level}


def _looked_up(format: str | None, lanes: int) -> float:
    """Nonzeros a cycle at most: scalar loads of x, two a cycle; a permutation of a whole vector; blocks, two FMAs of a vector."""
    if format is None or format.startswith("block"):
        return float(_UNITS * lanes)
    return float(lanes) if format.startswith("perm") else 2.0


def _multiplications(product: Product) -> int:
    """Of the structured part, for one stream."""
    (m, n), dims = product.part.shape, product.part.dims
    if product.part.kind == "kronecker":
        m1, n1, m2, n2 = dims
        return min(m1 * n2 * (n1 + m2), n1 * m2 * (n2 + m1))
    if product.part.kind == "low_rank":
        return dims[0] * (m + n)
    if product.part.kind == "hybrid":
        k, rank = dims
        return k * n + rank * (m - k + n)
    return m * n if product.part.kind == "dense" else 0


@lru_cache(maxsize=1)
def _library(target: Target) -> Any:
    """read(x, repeats, out): out = the sum of x, `repeats` times; multiply: as many multiply-adds, from registers alone."""
    functions = {name: _function(name, target.lanes) for name in ("read", "multiply")}
    return tvm.tirx.build(tvm.IRModule(functions), target=target.tvm(), pipeline=TIR_PIPELINE)


def _function(name: str, lanes: int) -> Any:
    with IRBuilder() as builder, T.prim_func():
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "doping.kernel": name, "global_symbol": name})
        n, repeats = tvm.tirx.Var("n", "int64"), tvm.tirx.Var("repeats", "int64")
        x = T.match_buffer(T.arg("x", T.handle()), (n,))
        T.match_buffer(T.arg("r", T.handle()), (repeats,), "int8")  # its length is how often
        out = T.match_buffer(T.arg("out", T.handle()), (_CHAINS * lanes,))
        acc = Registers(_CHAINS, lanes)
        block = _CHAINS * lanes
        factor, term = T.bind(load(x, 0, lanes)), T.bind(load(x, lanes, lanes))
        with T.serial(0, repeats), T.serial(0, T.floordiv(n, tvm.tirx.const(block, "int64"))) as i:
            for chain in range(_CHAINS):
                read = acc[chain] + load(x, i * block + chain * lanes, lanes)
                value = read if name == "read" else acc[chain] * factor + term
                store(acc.buffers[chain], 0, value, lanes)
        for chain in range(_CHAINS):
            store(out, chain * lanes, acc[chain], lanes)
    return builder.get()


def _rate(function: Any, target: Target, size: int) -> float:
    """fp32 values a second of the fastest of some rounds, on a buffer of `size` bytes."""
    block = _CHAINS * target.lanes
    count = max(1, size // (4 * block)) * block
    x, out = tensor(np.full(count, 0.5, "float32")), tensor(np.zeros(block, "float32"))

    def seconds(repeats: int) -> float:
        r = tensor(np.zeros(repeats, "int8"))
        start = time.perf_counter()
        function(x, r, out)
        return time.perf_counter() - start

    repeats = 1
    while seconds(repeats) < _SECONDS:
        repeats *= 2
    return count * repeats / min(seconds(repeats) for _ in range(_ROUNDS))
