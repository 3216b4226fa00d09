"""Kernels as one object file that needs nothing but libc and libm: plain functions of pointers, without globals."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm_ffi

from tvm_doping._tvm import tirx, tvm
from tvm_doping.errors import UnsupportedModel
from tvm_doping.freestanding.calls import itemsize, largest
from tvm_doping.freestanding.memory import aligned
from tvm_doping.kernels.lowering import tir_pipeline
from tvm_doping.kernels.trees import found
from tvm_doping.targets import Target

# Of what an AllocBuffer asks, TVM's code generator takes less than so many bytes from the stack, and more from the runtime.
_ON_THE_STACK = 1024
# Passes that make TVM's calling convention, and those that refuse to run before it.
_LATER = ("tirx.MakePackedAPI", "tirx.BF16StorageLegalize", "tirx.FP8StorageLegalize")
_LONGEST = 256  # bytes of the longest vector that SVE knows
# What compiled code may call: libm's functions of one and two arguments, for float and double.
_LIBM = re.compile(
    "(a?(cos|sin|tan)h?|atan2|ceil|copysign|erf|exp(2|10)?|fabs|floor|fma|fmax|fmin|fmod|hypot|ldexp|log(2|10|1p)?|nearbyint"
    "|nextafter|pow|rint|round|sqrt|trunc)f?"
)


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """code: the object file; workspace: name -> bytes of memory that a kernel needs beside its arguments; timed: whether it
    takes the number of steps T; frame: bytes of the largest stack frame; libm: what they call of it.

    A kernel is void name(arguments..., [int64_t T,] [void *workspace]).
    """

    code: bytes
    workspace: dict[str, int]
    timed: dict[str, bool]
    frame: int
    libm: tuple[str, ...]


def compile_kernels(functions: Mapping[str, Any], prefix: str, target: Target, steps: int) -> Kernels:
    """The object file with `prefix` + name for each function. Buffers that are larger than a stack frame should be become
    places in a workspace, whose size is that for the most steps.

    Raises UnsupportedModel for a function that calls into TVM's runtime or another library.
    """
    made = target.tvm()
    bound = tirx.transform.BindTarget(made.with_host(made))
    # without a global_symbol none of TVM's passes takes a function for one to be called from outside
    bare = {tvm.ir.GlobalVar(name): _private(f) for name, f in sorted(functions.items())}
    with tvm.transform.PassContext(instruments=[_Skip()]):
        lowered = tir_pipeline(bound(tvm.IRModule(bare)))
    workspace: dict[str, int] = {}
    timed: dict[str, bool] = {}
    plain = {}
    for gv, function in sorted(lowered.functions_items(), key=lambda item: item[0].name_hint):
        name = gv.name_hint
        plain[tvm.ir.GlobalVar(prefix + name)], workspace[name], timed[name] = _plain(
            function, prefix + name, steps
        )
    passes = [
        tirx.transform.FP8StorageLegalize(),
        tirx.transform.BF16StorageLegalize(),
        tirx.transform.LowerTVMBuiltin(),
        tirx.transform.LowerIntrin(),
    ]
    mod = tvm.transform.Sequential(passes)(tvm.IRModule(plain))
    library = tvm.get_global_func("target.build.llvm")(mod, made.with_host(made))
    libm = _libm(library.inspect_source("ll"), prefix)
    with tempfile.TemporaryDirectory(prefix="tvm-doping-") as folder:
        path = Path(folder) / "kernels.o"
        library.write_to_file(str(path))
        code = path.read_bytes()
    frame = _frame(library.inspect_source("s"))
    return Kernels(code=code, workspace=workspace, timed=timed, frame=frame, libm=libm)


@tvm.instrument.pass_instrument
class _Skip:
    def should_run(self, mod: Any, info: Any) -> bool:
        return str(info.name) not in _LATER


def _private(function: Any) -> Any:
    return function.without_attr("global_symbol") if "global_symbol" in function.attrs else function


def _plain(function: Any, name: str, steps: int) -> tuple[Any, int, bool]:
    """(the function of pointers, bytes of its workspace, whether it takes T)."""
    pointers = [_pointer(param.name, str(param.dtype)) for param in function.params]
    declared = [
        tirx.DeclBuffer(param, data=pointer) for param, pointer in zip(function.params, pointers, strict=True)
    ]
    workspace, size = _pointer("workspace", "uint8"), 0
    binds = found(function.body, tirx.Bind)  # extents that are alike get one name

    def place(allocation: Any) -> Any:
        nonlocal size
        buffer = allocation.buffer
        count = math.prod(largest(extent, steps, binds) for extent in buffer.ty.shape)
        asked = count * itemsize(str(buffer.dtype))
        if asked < _ON_THE_STACK and all(isinstance(extent, tirx.IntImm) for extent in buffer.ty.shape):
            return allocation
        at = tirx.op.handle_add_byte_offset(workspace, tirx.const(size, "int64"))
        size += aligned(asked)
        return tirx.DeclBuffer(buffer, data=at)

    body = tirx.SeqStmt([*declared, tvm_ffi.structural_map(function.body, (tirx.AllocBuffer, place))])
    # T under whatever identity the passes gave it
    sizes = list(tirx.analysis.undefined_vars(body, [*pointers, workspace]))
    whole = tirx.PrimFunc([*pointers, *sizes, *([workspace] if size else [])], body, None, function.attrs)
    return whole.with_attr("global_symbol", name), size, bool(sizes)


def _pointer(name: str, dtype: str) -> Any:
    return tirx.Var(name, tvm.ir.PointerType(tvm.ir.PrimType(dtype), "global"))


def _libm(text: str, prefix: str) -> tuple[str, ...]:
    """The functions that LLVM's code declares, which must all be libm's; else UnsupportedModel."""
    called = sorted(
        name
        for name in re.findall(r"^declare [^@]*@([\w.$]+)\(", text, re.MULTILINE)
        if not name.startswith("llvm.")
    )
    for name in called:
        if not _LIBM.fullmatch(name):
            callers = re.findall(rf"^define [^@]*@{re.escape(prefix)}(\w+)\(", text, re.MULTILINE)
            raise UnsupportedModel(
                f"an operator among {', '.join(callers)[:200]}",
                "code that needs no runtime, for a program in C",
                f"a call of {name}",
                "Write the model without it, or compile it for TVM's runtime: --runtime tvm.",
            )
    return tuple(called)


def _frame(assembly: str) -> int:
    """The largest stack frame, in bytes, by what each function's unwinding notes and instructions say."""
    return max((_function_frame(part) for part in assembly.split(".cfi_startproc")[1:]), default=0)


def _function_frame(assembly: str) -> int:
    body = assembly.partition(".cfi_endproc")[0]
    offsets = re.findall(r"\.cfi_def_cfa(?:_offset| [%\w]+,) (\d+)", body)
    frame = max(map(int, offsets), default=0)
    if ".cfi_def_cfa_register" in body or re.search(r"\.cfi_def_cfa (%rbp|w29|x29)", body):
        # a frame pointer: the notes end before what is subtracted from the stack pointer, and what aligns it
        frame += sum(map(int, re.findall(r"subq\t\$(\d+), %rsp", body)))
        frame += sum(map(int, re.findall(r"andq\t\$-(\d+), %rsp", body)))
    # Arm: where vectors of unknown length are on the stack the notes are expressions; so from the instructions
    pushed = sum(map(int, re.findall(r"\[sp, #-(\d+)\]!", body)))
    taken = re.findall(r"sub\s+sp, (?:sp|x9), #(\d+)(?:, lsl #(\d+))?", body)
    pushed += sum(int(size) << int(shift or 0) for size, shift in taken)
    pushed += _LONGEST * sum(map(int, re.findall(r"addvl\s+sp, sp, #-(\d+)", body)))
    return max(frame, pushed)
