"""How CUDA kernels go from TensorIR to CUDA C, and what a grid-wide barrier needs of their launch."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import s_tir
from tvm.tirx import compilation_pipeline, transform
from tvm.tirx.op import CallFFIKernelAttr

from tvm_doping._tvm import tirx, tvm
from tvm_doping.kernels.cuda.words import BARRIER
from tvm_doping.kernels.trees import found

# The attribute of a device function that lists its launch's parameters, and the tag of a cooperative launch among them: the driver
# then refuses a grid whose blocks cannot all be resident, where a barrier of all would wait for ever.
_PARAMS, _COOPERATIVE, _SHARED = (
    "tirx.kernel_launch_params",
    "tirx.use_cooperative_launch",
    "tirx.use_dyn_shared_memory",
)


@tvm.transform.module_pass(opt_level=0, name="doping.LowerCuda")
def cuda_pipeline(mod: Any, context: Any) -> Any:
    """Lower functions with the attribute "doping.kernel" by this list, others by TVM's own."""
    ours = {gv: f for gv, f in mod.functions_items() if _is_kernel(f)}
    others = {gv: f for gv, f in mod.functions_items() if gv not in ours}
    lowered = tvm.IRModule(ours, attrs=mod.attrs)
    for step in _kernel_passes():
        lowered = step(lowered)
    lowered = _launched(lowered)
    if others:
        default, _, _ = tvm.tirx.get_tir_pipeline("s_tir")
        lowered.update(default(tvm.IRModule(others, attrs=mod.attrs)))
    return lowered


def _device_passes() -> Any:
    # TVM's own list simplifies once more, which puts every bound value back to where it is used: the gates become a megabyte of C.
    return tvm.ir.transform.Sequential([transform.LowerWarpMemory(), transform.LowerIntrin()])


# tvm.tirx.build takes a pipeline by name only.
CUDA_PIPELINE = "doping-cuda"
if CUDA_PIPELINE not in compilation_pipeline.PIPELINE_MAP:
    compilation_pipeline.register_tir_pipeline(
        CUDA_PIPELINE, lambda: (cuda_pipeline, compilation_pipeline.finalize_host_passes, _device_passes)
    )


def _kernel_passes() -> list[Any]:
    return [
        transform.FlattenBuffer(),
        transform.VectorizeLoop(),
        transform.VerifyMemory(),
        transform.AnnotateEntryFunc(),
        s_tir.transform.MergeSharedMemoryAllocations(),  # adds the size of shared.dyn to the launch
        transform.SplitHostDevice(),
        transform.MakePackedAPI(),
    ]


def _launched(mod: Any) -> Any:
    """What kernels say of their launch: one with a grid-wide barrier is cooperative, which TVM can launch but nothing asks for."""
    waiting = {gv.name_hint for gv, f in mod.functions_items() if _PARAMS in (f.attrs or {}) and _waits(f)}

    def tagged(tags: Any) -> list[Any]:
        return [
            *(tag for tag in tags if tag != _SHARED),
            _COOPERATIVE,
            *(tag for tag in tags if tag == _SHARED),
        ]

    def launch(call: Any) -> Any:
        if getattr(call.op, "name", "") != "tirx.call_ffi_kernel" or call.args[0].value not in waiting:
            return call
        attrs = CallFFIKernelAttr(launch_params=tagged(call.attrs.launch_params))
        return tvm.ir.Call(call.op, call.args, attrs, ret_ty=call.ty)

    functions = {}
    for gv, f in mod.functions_items():
        if _PARAMS in (f.attrs or {}):
            # one block a multiprocessor is enough: ptxas would spill to make room for more
            f = f.with_attr("tirx.launch_bounds_min_blocks_per_sm", 1)
        if gv.name_hint in waiting:
            f = f.with_attr(_PARAMS, tagged(f.attrs[_PARAMS]))
        elif waiting:
            f = f.with_body(tvm_ffi.structural_map(f.body, (tvm.ir.Call, launch)))
        functions[gv] = f
    return tvm.IRModule(functions, attrs=mod.attrs)


def _waits(function: Any) -> bool:
    """Whether a device function has a grid-wide barrier."""
    return any(
        getattr(arg, "value", None) == BARRIER
        for call in found(function.body, tvm.ir.Call)
        for arg in call.args
    )


def _is_kernel(function: Any) -> bool:
    return isinstance(function, tirx.PrimFunc) and bool(function.attrs) and "doping.kernel" in function.attrs
