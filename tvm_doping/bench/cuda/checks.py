"""Every kind of CUDA kernel against PyTorch, before anything is timed: small models of all structures, patterns and precisions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvm_doping.places import write_files
from tvm_doping.targets import Target

FOLDER, RESULTS = "checks", "cuda-checks.json"
# Streams one by one and side by side, a tile of 32 not full: one step and several, so each kernel of a layer runs.
BATCHES, STEPS = (2, 40), 5
_TOLERANCE, _ROUNDING = 1e-4, 10.0
_WORDS = 50


@dataclass(frozen=True, kw_only=True)
class Check:
    """An embedding, two LSTM layers and a linear one: structure ("": dense), pattern of S, precision, and a format to force."""

    name: str
    structure: str
    pattern: str = "unstructured"
    precision: str = "exact"
    format: str = ""


CHECKS = (
    Check(name="kronecker", structure="kronecker"),
    Check(name="nm32-fp16", structure="kronecker", pattern="nm32", precision="fp16"),
    Check(
        name="tensor-cores-fp16", structure="kronecker", pattern="block16", precision="fp16", format="mma16"
    ),
    Check(
        name="tensor-cores-bf16", structure="low_rank", pattern="block16", precision="bf16", format="mma16"
    ),
    Check(name="low-rank", structure="low_rank"),
    Check(name="hybrid-int8", structure="hybrid", precision="int8"),
    Check(name="dense-bf16", structure="", precision="bf16"),
)


def allowed(manifest: Any) -> float:
    """How far a model may be from PyTorch: 1e-4; with rounded weights, ten times what they were measured to cost on other inputs
    when it was compiled, which a wrong kernel is far beyond.
    """
    costs = (_ROUNDING * cost.max_abs for cost in manifest.precision_error.values())
    return max(_TOLERANCE, *costs, 0.0)


def prepare(
    out: Path,
    machine: Target,
    checks: Sequence[Check] = CHECKS,
    *,
    hidden: int = 96,
    echo: Callable[[str], None] = lambda text: None,
) -> None:
    """Compile the models into `out`, with PyTorch's results for their inputs; those that are there are kept. Needs nvcc."""
    from tvm_doping.build import compile

    for check in checks:
        folder = out / FOLDER / check.name
        if folder.is_dir():
            continue
        echo(f"{check.name}: compiling")
        model = _model(check, hidden)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f"{check.name}.npz").open("wb") as file:
            np.savez(file, **_expected(model))
        force = {"format": check.format} if check.format else {"structure": "kept"} if check.structure else {}
        bundle = compile(model, machine, precision=check.precision, force=force, records=None)  # type: ignore[arg-type]
        bundle.save(folder)


def run(kit: Path, out: Path, echo: Callable[[str], None] = print) -> bool:
    """Run what the kit has, write `out`/cuda-checks.json and tell what is wrong; whether all is right."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((kit / FOLDER).glob("*.npz")):
        try:
            found[path.stem] = _one(path.with_suffix(""), path)
        except Exception as error:  # a kernel that cannot be launched: the others are checked all the same
            found[path.stem] = {
                "right": False,
                "failed": f"{type(error).__name__}: {str(error).strip()[:600]}",
            }
    if not found:
        return True
    write_files(out, {RESULTS: json.dumps(found, indent=1)})
    wrong = {name: row for name, row in found.items() if not row["right"]}
    for name, row in wrong.items():
        echo(f"{name}: {row.get('failed') or 'WRONG: {error:.3g} off, {allowed:.3g} allowed'.format(**row)}")
    echo(f"{len(found)} kinds of kernels checked against PyTorch, {len(wrong)} of them wrong")
    return not wrong


def _one(folder: Path, expected: Path) -> dict[str, Any]:
    from tvm_doping.runtime import load

    with np.load(expected, allow_pickle=False) as file:
        arrays = dict(file)
    worst = 0.0
    for batch in BATCHES:
        x, wanted = arrays[f"x{batch}"], arrays[f"y{batch}"]
        with load(folder, batch=batch) as session:
            limit, formats = (
                allowed(session.bundle.manifest),
                [layer.format for layer in session.bundle.manifest.layers],
            )
            # not max(): a NaN is wrong, and must stay
            worst = float(np.maximum(worst, np.abs(session.run(x) - wanted).max()))
            session.reset()
            steps = np.stack([session.step(each) for each in x])
            worst = float(np.maximum(worst, np.abs(steps - wanted).max()))
    return {"right": bool(worst <= limit), "error": worst, "allowed": limit, "formats": formats}


def _model(check: Check, hidden: int) -> Any:
    import torch

    from tvm_doping.models import dope

    class Words(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(_WORDS, hidden)
            self.lstm = torch.nn.LSTM(hidden, hidden, 2)
            self.output = torch.nn.Linear(hidden, _WORDS)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.output(self.lstm(self.embedding(words))[0])
            return y

    torch.manual_seed(0)
    model = Words()
    if check.structure:
        kind: Any = check.structure
        dope(model, structure=kind, compression=4, pattern=check.pattern, modules=["lstm", "output"])
    return model.eval()


def _expected(model: Any) -> dict[str, Any]:
    import torch

    arrays: dict[str, Any] = {}
    for batch in BATCHES:
        x = np.random.default_rng(batch).integers(0, _WORDS, (STEPS, batch))
        with torch.no_grad():
            y = model(torch.from_numpy(x))
        arrays |= {f"x{batch}": x, f"y{batch}": y.numpy()}
    return arrays
