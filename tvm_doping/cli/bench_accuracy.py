"""`tvm-doping bench-accuracy`: every method at every compression, trained with one budget -> accuracy.json, accuracy.md, plots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_doping.cli.show import console, settings


def bench_accuracy(
    recipe: Annotated[str, typer.Option(metavar="NAME", help="A doped recipe, by name or YAML file.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the results and the runs.")] = Path(
        "results/accuracy"
    ),
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the data.", show_default=False)
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A method; repeatable. All of them if left out.", show_default=False
        ),
    ] = None,
    compression: Annotated[
        list[float] | None,
        typer.Option(metavar="X", help="A compression; repeatable.", show_default="10 and 20"),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(metavar="N", help="A seed; repeatable.", show_default="0 and 1")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Recipe of a dense model, trained first, whose weights all methods start from.",
            show_default=False,
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V,W,...",
            help="Train methods with an S with each value of a setting under doping, as doping.pattern=nm32,block16; repeatable.",
            show_default=False,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change the recipe of all methods; repeatable.",
            show_default=False,
        ),
    ] = None,
    set_start: Annotated[
        list[str] | None,
        typer.Option(
            "--set-start",
            metavar="NAME=VALUE",
            help="Change the recipe of --start; repeatable.",
            show_default=False,
        ),
    ] = None,
    speed: Annotated[
        bool,
        typer.Option("--speed/--no-speed", help="Compile the first seed's runs at the end, and time them."),
    ] = True,
) -> None:
    """Measure what compression costs in accuracy, method by method.

    Each method has the same data, steps and settings. Runs are kept in OUT/runs: after an interruption the same command goes on.

    Example: tvm-doping bench-accuracy --recipe lm-small --data ptb --start lm-small-dense --compression 20 --seed 0
    """
    from tvm_doping.bench import accuracy
    from tvm_doping.bench.accuracy_cells import METHODS

    screen = console()
    results = accuracy.run(
        out,
        recipe,
        data=data,
        methods=tuple(method or METHODS),
        compressions=tuple(compression or (10.0, 20.0)),
        seeds=tuple(seed or (0, 1)),
        start=start,
        vary={
            name: str(values).split(",")
            for name, values in settings(vary, "--vary", "doping.pattern=nm32,block16").items()
        },
        overrides=settings(set_, "--set", "train.epochs=3"),
        start_overrides=settings(set_start, "--set-start", "train.epochs=3"),
        speed=speed,
        echo=screen.print,
    )
    screen.print(accuracy.markdown(results))
