"""What runs in the emulated process: kernels of a library, and bundles as their users load them.

    python3 inside.py FOLDER     reads FOLDER/jobs.json and FOLDER/arrays.npz, writes FOLDER/results.npz

A job says its name before it runs: the last one said is the one that crashed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import tvm_doping
from tvm_doping._runtime import from_dlpack, open_library
from tvm_doping.arrays import aligned_copy
from tvm_doping.targets import resolve

Arrays = dict[str, np.ndarray]


def kernel(job: dict[str, Any], arrays: list[np.ndarray]) -> Arrays:
    """Call a function of a library; its last `outputs` arguments are what it writes."""
    given = [aligned_copy(array) for array in arrays]
    open_library(Path(job["library"]))[job["function"]](*map(from_dlpack, given))
    return {str(i): array for i, array in enumerate(given[-job["outputs"] :])}


def bundle(job: dict[str, Any], arrays: list[np.ndarray]) -> Arrays:
    """Load a bundle for this CPU, which checks the machine and, with verify, the golden run; then run pieces of a stream."""
    session = tvm_doping.load(job["folder"], threads=job["threads"], verify=True)
    outputs = {str(i): np.asarray(session.run(array)) for i, array in enumerate(arrays)}
    session.reset()
    stepped = [np.asarray(session.step(step)) for step in arrays[0]] if job["steps"] else []
    return {
        **outputs,
        **({"steps": np.stack(stepped)} if stepped else {}),
        "error": np.array(session.verify()),
        "threads": np.array(session.threads),
    }


JOBS = {"kernel": kernel, "bundle": bundle}


def main(folder: Path) -> None:
    jobs = json.loads((folder / "jobs.json").read_text())
    results: Arrays = {}
    with np.load(folder / "arrays.npz") as file:
        for name, job in jobs.items():
            print(f"job {name}", flush=True)
            given = [file[f"{name}/{i}"] for i in range(job["arrays"])]
            results |= {f"{name}/{key}": array for key, array in JOBS[job["kind"]](job, given).items()}
    np.savez(folder / "results.npz", auto=np.array(resolve("auto").name), **results)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
