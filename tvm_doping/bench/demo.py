"""The main job on an embedded default: train a small doped language model, compile it, check it, time it.

`make demo` runs this; `python -m tvm_doping.bench.demo --help` lists what can be changed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvm_doping import bench
from tvm_doping.errors import BenchError, DopingError

if TYPE_CHECKING:
    from rich.console import Console

    from tvm_doping.bundle import Bundle

_STEPS = 100  # of the comparison with PyTorch
_ALLOWED = 1e-5  # absolute, of every output and state


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    options = _options(arguments)
    from rich.console import Console

    console = Console(highlight=False)
    started = time.perf_counter()
    try:
        _demo(console, options.out, options.recipe, options.baseline or bench.BASELINES, options.seconds)
    except DopingError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: {error}", markup=True)
        return 1
    console.print(f"\nAll of it took {time.perf_counter() - started:.0f} s.")
    return 0


def _demo(console: Console, out: Path, recipe: str, baselines: Sequence[str], seconds: float) -> None:
    import torch

    from tvm_doping.build import compile
    from tvm_doping.models.train import train
    from tvm_doping.targets import resolve

    target = resolve("auto")
    console.rule("1. Train")
    console.print(
        f"{recipe}: a language model on Python's own documentation (pydoc_data.topics): first dense, then "
        "doped, the weights of its LSTM a Kronecker product B (x) C plus an extremely sparse S each."
    )
    # Measured: so small a model gains next to nothing from a second thread, and where another program runs on one
    # of two cores, waiting for that thread takes twice as long.
    torch.set_num_threads(1)
    dense, run = out / "run-dense", out / "run"
    train(f"{recipe}-dense", out=dense, resume=False)
    metrics = train(recipe, out=run, resume=False, dense=dense)
    perplexity, rival = metrics["test_perplexity"], metrics["dense_test_perplexity"]
    console.print(f"Test perplexity: dense {rival:.1f}, doped {perplexity:.1f}")

    console.rule("2. Compile")
    console.print(f"Detected target: {target.name} ({target.lanes} fp32 lanes, {target.cores} cores)")
    begun = time.perf_counter()
    bundle = compile(run, target=target)
    folder = out / "bundle"
    bundle.save(folder)
    console.print(f"Compiled in {time.perf_counter() - begun:.1f} s -> {folder}")
    _describe(console, bundle)

    console.rule("3. Check against PyTorch")
    error = largest_error(run, folder)
    if not error <= _ALLOWED:
        raise BenchError(
            str(folder),
            f"PyTorch's outputs and states within {_ALLOWED}",
            f"{error:.1e}",
            "Report this as a bug.",
        )
    console.print(
        f"Outputs and states over {_STEPS} steps: difference at most {error:.1e} ({_ALLOWED:.0e} allowed)"
    )

    console.rule("4. Time, against dense runtimes with the same weights")
    echo = partial(console.print, style="dim")
    results = bench.run(run, bundle=folder, baselines=baselines, seconds=seconds, echo=echo)
    paths = bench.write(results, out)
    console.print(bench.table(results))
    console.rule("Done")
    for what, path in (
        ("plots", paths["lstm.png"]),
        ("", paths["model.png"]),
        ("report", paths["report.html"]),
        ("samples", paths["results.json"]),
        ("bundle", folder),
    ):
        console.print(f"{what:8} {path}", soft_wrap=True)


def largest_error(run: Path, bundle: Path) -> float:
    """The largest absolute difference of any output or state between the bundle and PyTorch, over 100 steps.

    The bundle takes the first half step by step and the second at once; PyTorch takes all at once.
    """
    import torch

    from tvm_doping.bench.subject import subject_of
    from tvm_doping.models import load_model
    from tvm_doping.runtime import load

    model = load_model(run)
    session = load(bundle)
    (tokens,) = subject_of(model)[0].inputs(_STEPS, 1, 1, seed=0)
    half = _STEPS // 2
    stepped = np.stack([_first(session.step(tokens[t])) for t in range(half)])
    outputs = np.concatenate([stepped, _first(session.run(tokens[half:]))])
    with torch.inference_mode():
        expected, state = model(torch.from_numpy(tokens))
    pairs = [(outputs, expected), *zip(session.state.values(), state, strict=True)]
    return max(float(np.abs(ours - theirs.numpy()).max()) for ours, theirs in pairs)


def _first(outputs: np.ndarray | tuple[np.ndarray, ...]) -> np.ndarray:
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _describe(console: Console, bundle: Bundle) -> None:
    manifest = bundle.manifest
    for layer in manifest.layers:
        smaller = layer.dense_parameters / max(layer.parameters, 1)
        console.print(
            f"  {layer.name}: {layer.structure}; format {layer.format}; {smaller:.1f}x fewer parameters"
        )
    if manifest.compression:
        by = manifest.compression
        console.print(
            f"  all: {by.by_parameters:.1f}x smaller by parameters, {by.by_bytes:.1f}x by bytes stored"
        )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tvm_doping.bench.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for all results")
    parser.add_argument("--recipe", default="lm-tiny", help="a recipe that has a dense variant too")
    parser.add_argument(
        "--baseline", action="append", choices=bench.BASELINES, help="repeatable; all of them by default"
    )
    parser.add_argument("--seconds", type=float, default=24.0, help="of measuring; the rest comes on top")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
