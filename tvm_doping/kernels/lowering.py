"""How the kernels go from TensorIR to what LLVM takes: the passes that they need, and no others.

TVM's default pipeline lowers blocks, threads and warps, which the kernels do not have. Its `CompactBufferAllocation` alone takes
20 s on a layer with tiles (quadratic in the accesses to a buffer), and each of its five simplifiers a fifth of a second.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx import compilation_pipeline

from tvm_doping._tvm import tirx, tvm


@tvm.transform.module_pass(opt_level=0, name="doping.LowerTensorIR")
def tir_pipeline(mod: Any, context: Any) -> Any:
    """Lower functions with the attribute "doping.kernel" by this list, others by TVM's own."""
    kernels = {gv: f for gv, f in mod.functions_items() if _is_kernel(f)}
    others = {gv: f for gv, f in mod.functions_items() if not _is_kernel(f)}
    lowered = tvm.IRModule(kernels, attrs=mod.attrs)
    for step in _kernel_passes():
        lowered = step(lowered)
    if others:
        default, _, _ = tvm.tirx.get_tir_pipeline("s_tir")
        lowered.update(default(tvm.IRModule(others, attrs=mod.attrs)))
    return lowered


# tvm.tirx.build takes a pipeline by name only.
TIR_PIPELINE = "doping"
if TIR_PIPELINE not in compilation_pipeline.PIPELINE_MAP:
    _, _host, _device = tvm.tirx.get_tir_pipeline("s_tir")
    compilation_pipeline.register_tir_pipeline(TIR_PIPELINE, lambda: (tir_pipeline, _host, _device))


def _kernel_passes() -> list[Any]:
    return [
        tirx.transform.FlattenBuffer(),
        tirx.transform.StorageRewrite(),
        tirx.transform.StmtSimplify(),
        tirx.transform.CommonSubexprElim(),
        tirx.transform.VerifyMemory(),
        tirx.transform.AnnotateEntryFunc(),
        tirx.transform.SplitHostDevice(),
        tirx.transform.MakePackedAPI(),
    ]


def _is_kernel(function: Any) -> bool:
    return (
        isinstance(function, tirx.PrimFunc)
        and function.attrs is not None
        and "doping.kernel" in function.attrs
    )
