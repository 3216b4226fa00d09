"""`tvm-doping compile`: run folder -> bundle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from tvm_doping.cli.show import console, settings


def compile(
    run: Annotated[Path, typer.Argument(help="Run folder that `tvm-doping train` wrote.", metavar="RUN")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Bundle folder to write.  [default: bundles/NAME-OF-RUN]",
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
) -> None:
    """Compile a trained model into a bundle.

    Its outputs are checked against PyTorch. A bundle is a folder that loads in a moment, without PyTorch and
    without TVM's compiler; deploy it by copying.

    Example: tvm-doping compile runs/small --out bundles/small
    """
    from tvm_doping.bundle import check_place
    from tvm_doping.cli.inspect import show_bundle
    from tvm_doping.heads import Head
    from tvm_doping.targets import several

    names = [name for part in target or ["auto"] for name in part.split(",")]
    machines, out = several(names), out or Path("bundles") / run.resolve().name
    forced = settings(force, "--force", "format=csr")
    if head is not None:
        Head.parse(head)  # before what takes seconds
    check_place(out)
    from tvm_doping.build import compile as build  # takes seconds: only once the rest is in order

    screen = console()
    for machine in machines:
        screen.print(
            f"compiling {run} for {machine.name} ({machine.lanes} fp32 lanes, {machine.cores} cores)"
        )
    start = time.perf_counter()
    bundle = build(
        run,
        machines if len(machines) > 1 else machines[0],
        batch=batch,
        head=head,
        threads=threads,
        dump=dump,
        precision=precision,  # type: ignore[arg-type]
        force=forced or None,
        records=records,
        tolerance=tolerance,
    )
    seconds = time.perf_counter() - start
    saved = bundle.save(out)
    show_bundle(bundle, screen)
    screen.print(f"compiled and checked in {seconds:.1f} s -> {saved}")
