"""`tvm-doping compile`: run folder -> bundle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvm_doping.cli.show import console, settings
from tvm_doping.errors import DopingError, InvalidInput

if TYPE_CHECKING:
    from tvm_doping.targets import Target


def compile(
    run: Annotated[
        Path, typer.Argument(help="Run folder that `tvm-doping train` or `compress` wrote.", metavar="RUN")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder to write.  [default: bundles/NAME-OF-RUN; in C c/NAME-OF-RUN]",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[,NAME...]",
            help="Machine to compile for: auto (this one), or a name that `tvm-doping targets` lists. Several (also --target "
            "again): one bundle with code for each, of which a session takes the best that its CPU can run.  [default: auto]",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Streams side by side to optimise for; any number runs, with the same results.",
        ),
    ] = 1,
    steps: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="T",
            help="Time steps of a call to optimise for, 1 for a stream of single steps; any number runs, with the same results.",
        ),
    ] = 1,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What to return in place of the logits, computed with them: argmax, log_softmax, softmax or top_k:K.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Threads to optimise for; any number then runs, with the same results."
        ),
    ] = 1,
    dump: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder to write the IR into after each pass.")
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How low stored weights may go: exact (fp32), fp16, bf16 or int8; what it costs is measured.",
        ),
    ] = "exact",
    force: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Force a choice of the schedules, e.g. format=csr; repeatable."
        ),
    ] = None,
    records: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            help="Tuning records to use: auto (those that ship, and those that `tvm-doping tune` wrote), a folder, or none.",
        ),
    ] = "auto",
    tolerance: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="X", help="Largest difference from PyTorch, relative to max(1, largest output)."
        ),
    ] = 1e-5,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="tvm|c",
            help="What runs it: tvm, a bundle for this package and TVM's runtime; c, a folder of C that needs libc alone.",
        ),
    ] = "tvm",
    max_steps: Annotated[
        int,
        typer.Option(
            min=1, metavar="T", help="In C: time steps that it works on at once, which its memory is for."
        ),
    ] = 32,
    weights: Annotated[
        str,
        typer.Option(
            metavar="object|file", help="In C: weights in the program, or in a file that it maps or reads."
        ),
    ] = "object",
    factory: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What makes the model of a run folder of `compress`, file.py:factory; it is run.",
            show_default=False,
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="In C: what its functions' names begin with.", show_default=False),
    ] = None,
) -> None:
    """Compile a trained model into a bundle, or into C.

    Its outputs are checked against PyTorch. A bundle is a folder that loads in a moment, without PyTorch and
    without TVM's compiler; deploy it by copying. Of a translator it is a folder of two bundles, for `tvm-doping run`.

    Example: tvm-doping compile runs/small --out bundles/small

    Example: tvm-doping compile runs/small --runtime c --target cortex-a72 --out c/small
    """
    from tvm_doping.bundle import check_place
    from tvm_doping.cli.inspect import show_bundle
    from tvm_doping.heads import Head
    from tvm_doping.targets import several

    names = [name for part in target or ["auto"] for name in part.split(",")]
    machines = several(names)
    out = out or Path("c" if runtime == "c" else "bundles") / run.resolve().name
    options: dict[str, Any] = {
        "dump": dump,
        "precision": precision,
        "force": settings(force, "--force", "format=csr") or None,
        "records": records,
        "tolerance": tolerance,
    }
    if head is not None:
        Head.parse(head)  # before what takes seconds
    if _is_translator(run):
        if runtime != "tvm" or head is not None:
            raise InvalidInput(
                f"{run}, a translator", "--runtime tvm and no --head", "another", "Leave them out."
            )
        _compile_translator(run, machines, out, {**options, "threads": threads})
        return
    options |= {"factory": factory, "batch": batch, "steps": steps, "head": head}
    if runtime != "tvm":
        _check_c(runtime, machines, threads)
        in_c = {"prefix": prefix, "max_steps": max_steps, "weights": weights}
        _compile_c(run, machines[0], out, {**options, **in_c})
        return
    check_place(out)
    from tvm_doping.build import compile as build  # takes seconds: only once the rest is in order

    screen = console()
    for machine in machines:
        screen.print(
            f"compiling {run} for {machine.name} ({machine.lanes} fp32 lanes, {machine.cores} cores)"
        )
    start = time.perf_counter()
    bundle = build(run, machines if len(machines) > 1 else machines[0], threads=threads, **options)
    seconds = time.perf_counter() - start
    saved = bundle.save(out)
    show_bundle(bundle, screen)
    screen.print(f"{_done(machines)} in {seconds:.1f} s -> {saved}")


def _is_translator(run: Path) -> bool:
    """Whether a run folder holds a translator; what is wrong with the folder is told where it is read."""
    from tvm_doping.checkpoint import read_config

    try:
        return bool(read_config(run).get("task") == "translation")
    except (DopingError, OSError, ValueError):
        return False


def _compile_translator(run: Path, machines: Sequence[Target], out: Path, options: dict[str, Any]) -> None:
    from tvm_doping.build_translator import compile_translator
    from tvm_doping.cli.inspect import show_bundle

    screen = console()
    screen.print(f"compiling {run}, a translator, for {', '.join(machine.name for machine in machines)}")
    start = time.perf_counter()
    bundles = compile_translator(run, out, target=list(machines), **options)
    for bundle in bundles.values():
        show_bundle(bundle, screen)
    seconds = time.perf_counter() - start
    screen.print(f"{_done(machines)} in {seconds:.1f} s -> {out}")


def _done(machines: Sequence[Target]) -> str:
    """What was done: code for a CPU that this machine is not has not run."""
    from tvm_doping.targets import missing_features

    foreign = [machine.name for machine in machines if missing_features(machine.features)]
    if len(foreign) < len(machines):
        return "compiled and checked" + (
            f" (not {', '.join(foreign)}, which cannot run here)" if foreign else ""
        )
    return "compiled, not run here"


def _check_c(runtime: str, machines: Sequence[Target], threads: int) -> None:
    if runtime != "c":
        raise InvalidInput("--runtime", "tvm or c", repr(runtime), "Choose one.")
    if len(machines) > 1:
        raise InvalidInput(
            "--target", "one for a program in C", f"{len(machines)}", "Make a folder for each."
        )
    if threads > 1:
        raise InvalidInput(
            "--threads",
            "1 for a program in C",
            f"{threads}",
            "Run instances in threads of the program's own.",
        )


def _compile_c(run: Path, machine: Target, out: Path, options: dict[str, Any]) -> None:
    from tvm_doping.cli.inspect_c import show_c
    from tvm_doping.freestanding.report import check_place

    check_place(out)
    screen = console()
    screen.print(f"compiling {run} into C for {machine.name} ({machine.lanes} fp32 lanes)")
    start = time.perf_counter()
    from tvm_doping.build_c import compile_c

    made = compile_c(run, machine, **options)
    seconds = time.perf_counter() - start
    saved = made.save(out)
    show_c(made.report, screen)
    screen.print(f"compiled in {seconds:.1f} s -> {saved}; check it with: make -C {saved} check")
