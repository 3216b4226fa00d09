"""tvm_doping: compile doped LSTMs (structured + sparse weights) with Apache TVM.

    tvm_doping.dope(model, compression=20)             # any torch model with LSTMs and Linears; then train it
    tvm_doping.compress(model, "runs/x")               # or one that is trained: the nearest, and your loop fine-tunes it
    bundle = tvm_doping.compile(model, target="auto")  # or the run folder that training wrote
    bundle.save("my-bundle")
    session = tvm_doping.load("my-bundle")             # needs neither torch nor TVM's compiler
    y = session.step(x)

Importing this package loads neither torch nor TVM; each name below is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm_doping.build import compile
    from tvm_doping.build_c import compile_c
    from tvm_doping.bundle import Bundle
    from tvm_doping.errors import DopingError
    from tvm_doping.models import compress, dope, undope
    from tvm_doping.runtime import Session, load
    from tvm_doping.targets import Target
    from tvm_doping.tuning import tune

__version__ = "0.1.0"

_HOME = {
    "Bundle": "tvm_doping.bundle",
    "DopingError": "tvm_doping.errors",
    "Session": "tvm_doping.runtime",
    "Target": "tvm_doping.targets",
    "compile": "tvm_doping.build",
    "compile_c": "tvm_doping.build_c",
    "compress": "tvm_doping.models",
    "dope": "tvm_doping.models",
    "load": "tvm_doping.runtime",
    "tune": "tvm_doping.tuning",
    "undope": "tvm_doping.models",
}
__all__ = [
    "Bundle",
    "DopingError",
    "Session",
    "Target",
    "__version__",
    "compile",
    "compile_c",
    "compress",
    "dope",
    "load",
    "tune",
    "undope",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
