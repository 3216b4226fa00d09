"""Fuzz the loaders with atheris, which steers by the code that an input reaches: python -m tests.fuzz.run TARGET [RUNS [SEED]]

Prints libFuzzer's summary; ends with an error at the first input that a loader does not survive (which it writes to a file),
or that takes more than 20 s or 2 GB.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tvm_doping"]):
    import tvm_doping.bundle
    import tvm_doping.checkpoint
    import tvm_doping.elf
    import tvm_doping.models
    import tvm_doping.records
    import tvm_doping.verifying  # noqa: F401

from tests.fuzz.hostile import TARGET

name, runs, seed = [*sys.argv[1:], "10000", "1"][:3] if len(sys.argv) == 2 else [*sys.argv[1:], "1"][:3]
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
    atheris.Setup(
        [
            sys.argv[0],
            f"-runs={runs}",
            f"-seed={seed}",
            "-timeout=20",
            "-rss_limit_mb=2048",
            "-max_len=256",
            "-len_control=0",
        ],
        lambda data: TARGET[name](data, Path(place)),
    )
    atheris.Fuzz()
