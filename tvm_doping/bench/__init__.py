"""The harness: a compiled model against the best dense runtimes, on the same weights, in one interleaved run.

    results = bench.run("runs/lm-medium", steps=(1, 35))
    bench.write(results, "bench-output")

Importing this loads neither torch nor TVM nor any of the baselines.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from tvm_doping.bundle import Bundle
    from tvm_doping.sparsity.values import Precision

__all__ = ["BASELINES", "Scope", "run", "table", "write"]

Scope = Literal["lstm", "model"]
BASELINES: tuple[str, ...] = (
    "onnxruntime",
    "onnxruntime-int8",
    "openvino",
    "torch",
    "torch-int8",
    "tvm-dense",
    "gemv-floor",
)


def run(
    model: str | Path | torch.nn.Module,
    *,
    bundle: str | Path | Bundle | None = None,
    target: str = "auto",
    batch: int = 1,
    precision: Precision | None = None,
    steps: Sequence[int] = (1, 35),
    threads: int = 1,
    baselines: Sequence[str] = BASELINES,
    scopes: Sequence[Scope] = ("lstm", "model"),
    seconds: float = 60.0,
    seed: int = 0,
    echo: Any = None,
) -> dict[str, Any]:
    """Time a doped model, compiled, against dense baselines that hold the same weights expanded.

    model     run folder, or module: one unidirectional nn.LSTM, or tvm_doping.models' LanguageModel;
    bundle    the whole model as compiled before; None compiles it now, as the LSTM layers alone always are;
    precision how low stored weights may go where a bundle is compiled now; None: as in `bundle`, or exact. Another than exact
              is compared with PyTorch, but not refused for its error;
    steps     the T of each call: 1 is streaming step by step, with the state fed back in every engine;
    threads   equal for all; the process is pinned to as many cores while it measures;
    seconds   of measuring, shared by all scopes and T; checks and compilation come on top;
    echo      called with one line of text at every stage.

    Returns what `write` stores as results.json: machine, model, and a cell for each scope and T with every
    engine's samples (microseconds a call), median, p20, p80 and error against PyTorch. Raises BenchError
    where an fp32 engine disagrees with PyTorch, a package is missing, or the model is of another kind.
    """
    from tvm_doping.bench.harness import measure_model

    return measure_model(
        model,
        bundle=bundle,
        target=target,
        batch=batch,
        precision=precision,
        steps=tuple(steps),
        threads=threads,
        baselines=tuple(baselines),
        scopes=tuple(scopes),
        seconds=seconds,
        seed=seed,
        echo=echo or (lambda line: None),
    )


def table(results: dict[str, Any]) -> Any:
    """The results as a rich renderable: one table for each scope."""
    from tvm_doping.bench.report import renderable

    return renderable(results)


def write(results: dict[str, Any], folder: str | Path) -> dict[str, Path]:
    """Write results.json, table.md, a PNG a scope and report.html into the folder; returns their paths."""
    from tvm_doping.bench.report import write_all

    return write_all(results, Path(folder))
