"""Lower: everything that is not a doped layer becomes loops, by TVM's own passes."""

from __future__ import annotations

from typing import Any

from tvm_doping._tvm import array_of, relax, replace_main, te, tvm
from tvm_doping.passes.context import Context

LOWERED = "doping.lowered"


class Lower:
    """Operators -> call_tir of TVM's own loops, neighbours fused. The kernels of doped layers stay as they are.

    A main that has been lowered says so in an attribute: FuseOps would wrap what it fused once more.
    """

    def __init__(self, context: Context) -> None:
        self.target = context.target.tvm()

    def __call__(self, mod: Any) -> Any:
        if LOWERED in mod["main"].attrs:
            return mod
        passes = [
            relax.transform.LegalizeOps({"relax.take": _take}),
            relax.transform.FoldConstant(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(["main"]),
        ]
        if self.target.kind.name == "cuda":
            passes.append(_on_threads())
        with self.target:
            mod = tvm.transform.Sequential(passes)(mod)
        return replace_main(mod, mod["main"].with_attr(LOWERED, True))


def _on_threads() -> Any:
    """TVM's own loops on the threads of a GPU; kernels that are scheduled already stay as they are."""
    from tvm.s_tir import dlight

    gpu = dlight.gpu
    return dlight.ApplyDefaultSchedule(gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())


def _take(builder: Any, call: Any) -> Any:
    """x[..., i, ...] with a constant i: TVM's own loops read i from a tensor, and its copy from memory costs more than the row."""
    x, indices = call.args
    index, axis = array_of(indices), call.attrs.axis
    if index is None or index.ndim or axis is None:
        return relax.transform.legalize_ops.index._take(builder, call)
    axis, at = int(axis), int(index)

    def select(source: Any) -> Any:
        wanted = at if at >= 0 else source.shape[axis] + at
        shape = [*source.shape[:axis], *source.shape[axis + 1 :]]
        return te.compute(shape, lambda *i: source[(*i[:axis], wanted, *i[axis:])], name="select")

    return builder.call_te(select, x, primfunc_name_hint="select")
