"""The compiler that links for a target: this machine's own, or a cross compiler."""

from __future__ import annotations

import os
import shutil

from tvm_doping.errors import TargetError
from tvm_doping.targets import Target

_DRIVER = {"c": "gcc", "c++": "g++"}
_VARIABLE = {"c": "CC", "c++": "CXX"}


def compiler(target: Target, language: str = "c++") -> str | None:
    """The command of the compiler for a target, None for the usual one of this machine, which TVM finds.

    language: "c" or "c++". A cross compiler is the variable CC_<triple> or CXX_<triple> (with _ for -), else Debian's:
    aarch64-linux-gnu-gcc.

    Raises TargetError where there is none, with the line that installs it.
    """
    if not target.foreign:
        return None
    variable = f"{_VARIABLE[language]}_{target.triple.replace('-', '_')}"
    command = os.environ.get(variable) or f"{target.triple}-{_DRIVER[language]}"
    if shutil.which(command):
        return command
    if "linux" not in target.triple:
        raise TargetError(
            f"target {target.name}",
            f"a compiler that links for {target.triple} (its name in {variable})",
            "none",
            "Compile on such a machine, or with a cross compiler (clang, lld and the system's SDK).",
        )
    package = f"{_DRIVER[language]}-{target.triple.replace('_', '-')}"
    raise TargetError(
        f"target {target.name}",
        f"a compiler that links for it ({command}, or its name in {variable})",
        "none",
        f"Install it: sudo apt-get install {package}",
    )
