"""How functions go from TensorIR to what LLVM takes: kernels by the passes that they need, TVM's own by its pipeline, in vectors.

TVM's default pipeline lowers blocks, threads and warps, which the kernels do not have. Its `CompactBufferAllocation` alone takes
20 s on a layer with tiles (quadratic in the accesses to a buffer), and each of its five simplifiers a fifth of a second.
"""

from __future__ import annotations

from typing import Any

from tvm import s_tir
from tvm.tirx import compilation_pipeline

from tvm_doping._tvm import tirx, tvm
from tvm_doping.kernels.blocks import order_loops
from tvm_doping.kernels.conditions import split_at_conditions
from tvm_doping.kernels.mathematics import replace_calls
from tvm_doping.kernels.reductions import vectorize_reductions
from tvm_doping.kernels.stores import sort_stores
from tvm_doping.kernels.traced import TRACES, choose_by_size, one_step, scheduled

# LLVM splits a vector that is wider than the target's, and shorter ones leave wider registers empty.
_LANES = 8


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
        lowered.update(default(in_vectors(tvm.IRModule(others, attrs=mod.attrs))))
    return lowered


def in_vectors(mod: Any) -> Any:
    """TVM's own functions, of blocks, as loops that LLVM vectorises.

    LLVM does the most: whole loops in vectors with their tails, for any extents. It needs loops in the order of memory, no
    calls of libm, no conditions on the loop's variable; and sums it may not reorder, so that is done here.
    """
    tuned = {gv: [_to_loops(one) for one in scheduled(f)] for gv, f in mod.functions_items()}
    bare = {gv: _bare(f) for gv, f in mod.functions_items()}
    steps = {gv: step for gv, f in bare.items() if (step := one_step(f)) is not None}
    loops, steps = _ordered(bare, mod.attrs), _ordered(steps, mod.attrs)
    functions = {
        gv: choose_by_size(f, [*([steps[gv]] if gv in steps else []), *tuned[gv]]) for gv, f in loops.items()
    }
    return tvm.IRModule(functions, attrs=mod.attrs)


def _ordered(functions: dict[Any, Any], attrs: Any) -> dict[Any, Any]:
    """Functions as loops in the order that vectors want."""
    mod = tvm.IRModule({gv: order_loops(sort_stores(f)) for gv, f in functions.items()}, attrs=attrs)
    mod = tvm.transform.Sequential(_loop_passes())(mod)
    # Calls are replaced last: what they become binds variables, which a copy of it would bind twice.
    return {
        gv: replace_calls(vectorize_reductions(split_at_conditions(f), _LANES))
        for gv, f in mod.functions_items()
    }


def _bare(function: Any) -> Any:
    return function.without_attr(TRACES) if function.attrs and TRACES in function.attrs else function


def _to_loops(function: Any) -> Any:
    """A function with a schedule of its own as loops over flat buffers: its tiles and vectors stay as they are."""
    with_target = function.with_attr("tirx.is_scheduled", True)
    mod = tvm.transform.Sequential(_loop_passes())(tvm.IRModule({"main": with_target}))
    return replace_calls(mod["main"])


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


def _loop_passes() -> list[Any]:
    """From blocks to loops over flat buffers: the first of TVM's own passes, which do nothing more when they run again."""
    return [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        s_tir.transform.StmtSimplify(),
    ]


def _is_kernel(function: Any) -> bool:
    return (
        isinstance(function, tirx.PrimFunc)
        and function.attrs is not None
        and "doping.kernel" in function.attrs
    )
