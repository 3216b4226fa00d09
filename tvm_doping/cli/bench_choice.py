"""`tvm-doping bench-choice`: what the schedules chose against all that they could have -> choice.json, choice.md."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_doping.cli.show import console


def bench_choice(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for choice.json and choice.md.")] = Path(
        "results/choice"
    ),
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILTER",
            help="Hold axes to values, as H=650/1500,batch=1; repeatable.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--again", help="Keep finished cells, or measure them again.")
    ] = True,
    seconds: Annotated[float, typer.Option(min=0.01, metavar="X", help="Seconds of measuring a cell.")] = 4.0,
    target: Annotated[str, typer.Option(metavar="NAME", help="Machine to compile for.")] = "auto",
) -> None:
    """Prove the choice of formats by timing every candidate.

    Compiles each model in every format that this machine can run, and dense, and times all of them beside the choice, interleaved.
    Each cell is written when it is measured: run the command again to go on after an interruption.

    Example: tvm-doping bench-choice --only H=650,batch=1
    """
    from tvm_doping.bench import choice

    screen = console()
    results = choice.run(
        out, only=tuple(only or ()), resume=resume, seconds=seconds, target=target, echo=screen.print
    )
    screen.print(choice.markdown(results).splitlines()[0])
