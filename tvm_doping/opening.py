"""The code of a bundle, loaded into this process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_doping._runtime import new_machine, open_library
from tvm_doping.bundle import LIBRARY, Bundle
from tvm_doping.errors import BundleError, InvalidInput

if TYPE_CHECKING:
    from tvm_doping.runtime import Session


def open_code(bundle: Bundle) -> Any:
    """Its library, loaded into this process. Raises BundleError for one that this TVM runtime does not load."""
    try:
        if bundle.folder is not None:
            return open_library(bundle.folder / bundle.file)
        with tempfile.TemporaryDirectory(
            prefix="tvm-doping-"
        ) as folder:  # mapped once loaded: the file may go
            path = Path(folder) / LIBRARY
            path.write_bytes(bundle.library)
            return open_library(path)
    except (RuntimeError, ValueError, AttributeError, OSError) as error:
        raise _unloadable(bundle, error) from error


def main_of(library: Any, bundle: Bundle, gpu: bool = False) -> Any:
    """The function `main` of a bundle's library, on a virtual machine of its own. Raises BundleError where there is none."""
    try:
        return new_machine(library, gpu)["main"]
    except (RuntimeError, ValueError, AttributeError) as error:
        raise _unloadable(bundle, error) from error


def open_session(bundle: Bundle, *, graph: bool | None = None, **options: Any) -> Session:
    """A stream over a bundle, on the GPU where its code is for one."""
    from tvm_doping.runtime import Session

    if bundle.manifest.target.name.startswith("cuda-"):
        from tvm_doping.cuda.session import CudaSession

        return CudaSession(bundle, graph=graph is not False, **options)
    if graph is not None:
        raise InvalidInput(
            "graph", "a bundle for a GPU", f"one for {bundle.manifest.target.name}", "Leave it out."
        )
    return Session(bundle, **options)


def _unloadable(bundle: Bundle, error: Exception) -> BundleError:
    return BundleError(
        f"bundle {bundle.manifest.name!r}",
        "a library that this TVM runtime loads",
        str(error).strip()[:400],
        "Compile the model anew.",
    )
