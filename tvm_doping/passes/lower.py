"""Lower: everything that is not a doped layer becomes loops, by TVM's own passes."""

from __future__ import annotations

from typing import Any

from tvm_doping._tvm import relax, tvm
from tvm_doping.passes.context import Context


class Lower:
    """Operators -> call_tir of TVM's own loops, neighbours fused. The kernels of doped layers stay as they are."""

    def __init__(self, context: Context) -> None:
        self.target = context.target.tvm()

    def __call__(self, mod: Any) -> Any:
        passes = [
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(["main"]),
        ]
        with self.target:
            return tvm.transform.Sequential(passes)(mod)
