"""The benchmark matrix: doped LSTM layers of many sizes against the dense runtimes, resumable, a file a group.

A group is all that shares H, batch, T and threads: every compression and pattern of it, the baselines, and this compiler's own
dense build run interleaved, so that each ratio is of one run.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tvm_doping.bench import ceilings, variants
from tvm_doping.bench.cells import FAST, FULL, Axes, Group, Variant, filtered, groups
from tvm_doping.bench.engines import make
from tvm_doping.bench.engines.doped import Doped
from tvm_doping.bench.engines.stream import Stream
from tvm_doping.bench.harness import check_baselines
from tvm_doping.bench.machine import describe, pinned
from tvm_doping.bench.measure import interleave, summarise
from tvm_doping.bench.report import check_folder
from tvm_doping.errors import BenchError, DopingError
from tvm_doping.places import write_files
from tvm_doping.targets import Target, resolve

FORMAT_VERSION = 1
BASELINES = ("onnxruntime", "openvino", "onnxruntime-int8")
DENSE = "tvm-dense"
GROUPS = "groups"


def run(
    out: str | Path,
    *,
    fast: bool = False,
    only: Sequence[str] = (),
    resume: bool = True,
    seconds: float = 8.0,
    target: str = "auto",
    axes: Axes | None = None,
    echo: Callable[[str], None] = print,
) -> list[Path]:
    """Measure what is not measured yet, and return the groups' files, in out/groups.

    only     filters, as "H=650/1500,batch=1"; fast: the subset FAST; axes: others altogether;
    resume   keep groups that are finished; False measures them again;
    seconds  of measuring a group (at least 7 rounds, however long a call takes).

    Raises BenchError where a group of `out` is of another machine, or a baseline's outputs differ from PyTorch's.
    """
    folder, machine = Path(out), resolve(target)
    check_folder(folder)
    chosen = list(groups(filtered(axes or (FAST if fast else FULL), only), machine.lanes))
    (folder / GROUPS).mkdir(parents=True, exist_ok=True)
    paths = [folder / GROUPS / f"{group.name}.json" for group in chosen]
    todo = []
    for group, path in zip(chosen, paths, strict=True):
        wanted = _with_those_of(path, group)
        if wanted is not None or not resume:
            todo.append((wanted or group, path))
    left, spent, done = sum(group.work for group, _ in todo), 0.0, 0.0
    echo(f"{len(paths)} groups, {len(paths) - len(todo)} of them measured before")
    for group, path in todo:
        start = time.perf_counter()
        echo(f"{group.name}: {len(group.variants)} models; {_remaining(left, spent, done)}")
        measured = json.dumps(_measure(group, machine, seconds, echo), separators=(",", ":"))
        write_files(path.parent, {path.name: measured})
        spent += time.perf_counter() - start
        done, left = done + group.work, left - group.work
    variants.forget()
    return paths


def read(out: str | Path) -> list[dict[str, Any]]:
    """The finished groups of a folder. Raises BenchError where there are none."""
    paths = sorted((Path(out) / GROUPS).glob("*.json"))
    if not paths:
        raise BenchError(
            str(out), "a folder with measured groups", "none", "Run `tvm-doping bench-matrix` first."
        )
    return [json.loads(path.read_text()) for path in paths]


def _with_those_of(path: Path, group: Group) -> Group | None:
    """None where the file has all of the group; else the group with what the file has beside it, to be measured in one run."""
    if not path.is_file():
        return group
    found = json.loads(path.read_text())
    cpu = describe()["cpu"]
    if found["machine"]["cpu"] != cpu:
        raise BenchError(
            str(path), f"results of this machine ({cpu})", found["machine"]["cpu"], "Name another folder."
        )
    had = [Variant.of(name) for name in (*found["models"], *found["impossible"])]
    if set(group.variants) <= set(had):
        return None
    everything = tuple(dict.fromkeys((*group.variants, *had)))
    return Group(H=group.H, batch=group.batch, T=group.T, threads=group.threads, variants=everything)


def _measure(group: Group, target: Target, seconds: float, echo: Callable[[str], None]) -> dict[str, Any]:
    """One interleaved run of a group, as it is stored: no samples, their median, p20, p80 and number."""
    bundles, impossible = {}, {}
    fast_for = group.compiled_for(target.lanes)
    for variant in group.variants:
        try:
            bundles[variant] = variants.compiled(group.H, variant, target, *fast_for, threads=group.threads)
        except DopingError as error:  # a size or density at which the pattern does not exist
            impossible[variant.name] = " ".join(str(error).split())
            echo(f"{variant.name}: {impossible[variant.name]}")
    own = variants.compiled(group.H, None, target, *fast_for, threads=group.threads)
    subject = variants.dense(group.H)
    streams: dict[str, Stream] = {}
    with pinned(group.threads) as cores:
        limits = ceilings.measure(target)
        for name in BASELINES:
            streams[name] = make(name, subject, group.threads).open(group.T, group.batch)
        streams[DENSE] = Doped(own, group.threads).open(group.T, group.batch)
        errors = check_baselines(streams, subject, group.T, group.batch)
        for variant, bundle in bundles.items():
            streams[variant.name] = Doped(bundle, group.threads).open(group.T, group.batch)
            errors[variant.name] = bundle.manifest.golden_error
        x = subject.inputs(group.T, group.batch, 1, 0)[0]
        samples = interleave({name: _call(s, x) for name, s in streams.items()}, seconds=seconds)
    return {
        "format_version": FORMAT_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {**describe(), "cores_used": cores, "ceilings": limits.to_dict()},
        "H": group.H,
        "batch": group.batch,
        "T": group.T,
        "threads": group.threads,
        "engines": {
            name: {"error": errors[name], "us": _rounded(summarise(values))}
            for name, values in samples.items()
        },
        "models": {
            variant.name: {
                "compression": bundle.manifest.compression.model_dump()
                if bundle.manifest.compression
                else {},
                "formats": [layer.format for layer in bundle.manifest.layers],
                "roofline": ceilings.bound(
                    bundle, limits, steps=group.T, batch=group.batch, threads=group.threads
                ),
            }
            for variant, bundle in bundles.items()
        },
        "impossible": impossible,
    }


def _call(stream: Stream, x: Any) -> Callable[[], object]:
    return lambda: stream.call(x)


def _rounded(us: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.5g}") for name, value in us.items()}


def _remaining(left: float, spent: float, done: float) -> str:
    """How long the rest will take, from what the groups so far took against their estimated work."""
    minutes = left * (spent / done if done else 1.0) / 60
    return f"about {minutes:.0f} min left" if minutes >= 1 else "under a minute left"
