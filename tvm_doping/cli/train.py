"""`tvm-doping train`: recipe and data -> run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_doping.cli.show import console, measured, settings


def train(
    recipe: Annotated[
        str, typer.Option(metavar="NAME", help="A recipe that ships (lm-tiny, lm-small, ...) or a YAML file.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the data that the recipe's task reads; some recipes need none.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Run folder to write.  [default: runs/RECIPE]", show_default=False
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Override a field of the recipe, e.g. train.epochs=3; repeatable.",
        ),
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Run folder of the dense model, to set its test metric beside this one's.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Continue a run that was stopped; --no-resume starts it over.")
    ] = True,
) -> None:
    """Train a doped (or dense) model from a recipe.

    Writes model.safetensors, config.json, metrics.jsonl and the resolved recipe into the run folder. Stop it
    at any
    time: the same command continues where it was.

    Example: tvm-doping train --recipe lm-small --data ptb --out runs/small
    """
    from tvm_doping.models.train import train as start

    folder = out or Path("runs") / Path(recipe).stem
    metrics = start(
        recipe,
        data,
        folder,
        resume=resume,
        overrides=settings(set_, "--set", "model.hidden=200"),
        dense=dense,
    )
    if not metrics:
        return  # one of several processes; the first says it
    screen = console()
    for name, value in measured(metrics):
        screen.print(f"{name}: {value}")
    screen.print(f"-> {folder}")
