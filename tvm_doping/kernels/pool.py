"""Libraries, and the C code that they are linked with: it runs a kernel's regions on the threads of a session."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tvm_doping._tvm import tvm
from tvm_doping.errors import DopingError
from tvm_doping.kernels.emit import SHARED

SOURCE = Path(__file__).with_suffix(".c")


def export(
    executable: Any, mod: Any, path: Path, compiler: str | None = None, pack_imports: Any = None
) -> None:
    """Link what `mod` was compiled to, an executable, into the library `path`; compiler: for another machine than this
    (`cross.compiler`); pack_imports: of a GPU's kernels (`cuda.image`).
    """
    link = {} if compiler is None else {"cc": compiler}
    if pack_imports is not None:
        link["fpack_imports"] = pack_imports
    executable.export_library(str(path), addons=pool_objects(mod, path.parent, compiler), **link)


def pool_objects(mod: Any, folder: Path, compiler: str | None = None) -> list[str]:
    """The object files that a module's library is linked with: that of pool.c, where a function of it has the attribute SHARED.

    Raises DopingError where the compiler that links libraries cannot compile it.
    """
    if not any(f.attrs and f.attrs.get(SHARED) for _, f in mod.functions_items()):
        return []
    target = folder / "pool.o"
    compiler = compiler or tvm.support.cc.get_cc()
    command = [compiler, "-x", "c", "-std=c11", "-O2", "-fPIC", "-c", str(SOURCE), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DopingError(
            "the threads of a library",
            f"a C11 compiler with pthreads ({compiler})",
            done.stderr.strip()[:400],
            "Install one, name it in CXX, or compile with threads=1.",
        )
    return [str(target)]
