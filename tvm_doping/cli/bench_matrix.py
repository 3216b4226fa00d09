"""`tvm-doping bench-matrix`: many sizes, compressions, patterns and batches -> a file a group, table and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_doping.cli.show import console


def bench_matrix(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for groups, table and plots.")] = Path(
        "results/matrix"
    ),
    fast: Annotated[
        bool, typer.Option("--fast", help="A subset: three sizes, two compressions, two batches.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILTER",
            help="Hold axes to values, as H=650/1500,batch=1; repeatable. "
            "Axes: H, compression, pattern, batch, T, threads.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--again", help="Keep finished groups, or measure them again.")
    ] = True,
    seconds: Annotated[
        float, typer.Option(min=0.01, metavar="X", help="Seconds of measuring a group.")
    ] = 8.0,
    target: Annotated[str, typer.Option(metavar="NAME", help="Machine to compile for.")] = "auto",
    report: Annotated[
        bool, typer.Option("--report", help="Measure nothing: only write table and plots anew.")
    ] = False,
) -> None:
    """Time doped LSTMs of many sizes against dense runtimes.

    Each group of cells is one interleaved run, kept in a file of its own when it is finished: run the command again to go on
    after an interruption. Needs `pip install tvm-doping[bench]`.

    Example: tvm-doping bench-matrix --fast --only H=650
    """
    from tvm_doping.bench import matrix, matrix_report

    screen = console()
    if not report:
        matrix.run(
            out,
            fast=fast,
            only=tuple(only or ()),
            resume=resume,
            seconds=seconds,
            target=target,
            echo=screen.print,
        )
    for name, path in matrix_report.write(out).items():
        screen.print(f"{name}: {path}")
