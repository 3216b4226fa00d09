"""DropBroadcasts: the factors of a product as they are, not repeated."""

from __future__ import annotations

from typing import Any

from tvm_doping._tvm import definitions, op_name, rebuild, relax, replace_main, tvm
from tvm_doping.passes.context import Context


class DropBroadcasts:
    """matmul(broadcast_to(a), broadcast_to(b)) -> matmul(a, b) where that has the same shape: matmul broadcasts itself.

    PyTorch decomposes the product of an input that is not contiguous, as one of batch_first, and a matrix so: MatchLinear would see
    as many weights as there are streams.
    """

    def __init__(self, context: Context) -> None:
        pass

    def __call__(self, mod: Any) -> Any:
        main = mod["main"]
        values = definitions(main)

        def visit(var: Any, value: Any) -> list[Any] | None:
            if op_name(value) != "relax.matmul":
                return None
            product = value
            for position in range(2):
                source = values.get(value.args[position])
                if source is None or op_name(source) != "relax.broadcast_to":
                    continue
                args = list(product.args)
                args[position] = source.args[0]
                without = relax.BlockBuilder().normalize(relax.op.matmul(*args, product.attrs.out_dtype))
                if _same(without.ty.shape, value.ty.shape):
                    product = without
            return None if product is value else [product]

        return relax.transform.DeadCodeElimination(["main"])(replace_main(mod, rebuild(main, visit)))


def _same(a: Any, b: Any) -> bool:
    """Whether two shapes are equal whatever their symbols are."""
    analyzer = tvm.sym.Analyzer()
    return len(a) == len(b) and all(analyzer.can_prove_equal(x, y) for x, y in zip(a, b, strict=True))
