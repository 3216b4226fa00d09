"""`tvm-doping bench-tuning`: what tuning finds against the best of all candidates -> a JSON a cell, and tuning.png."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_doping.cli.show import console


def bench_tuning(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the results.")] = Path(
        "results/tuning"
    ),
    hidden: Annotated[
        int, typer.Option(min=16, metavar="H", help="Hidden units, and inputs, of the layer.")
    ] = 650,
    compression: Annotated[float, typer.Option(min=1, metavar="X", help="Compression by parameters.")] = 20.0,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Streams side by side.")] = 1,
    jobs: Annotated[int, typer.Option(min=1, metavar="K", help="Workers that compile side by side.")] = 1,
    until: Annotated[
        str,
        typer.Option(
            metavar="STAGE",
            help="How far to go now: compiled, timed (which wants a quiet machine) or done; the next call goes on.",
        ),
    ] = "done",
    records: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Folder to add the fastest to, as a record.", show_default=False),
    ] = None,
    lock: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File that is held while timing.", show_default=False)
    ] = None,
) -> None:
    """Compare what tuning finds with the best there is.

    Every candidate of a reduced space is compiled, then measured, and each strategy run on these measurements with many seeds.
    One cell a call; the plot shows all cells of the folder. A measurement that was stopped goes on.

    Example: tvm-doping bench-tuning --hidden 650 --batch 8
    """
    from tvm_doping.bench import tuning
    from tvm_doping.errors import InvalidInput

    if until not in tuning.UNTIL:
        raise InvalidInput("--until", f"one of {', '.join(tuning.UNTIL)}", repr(until), "Choose one.")
    screen = console()
    cell = tuning.run(
        out,
        H=hidden,
        compression=compression,
        batch=batch,
        jobs=jobs,
        until=until,  # type: ignore[arg-type]
        records=records,
        lock=lock,
        echo=screen.print,
    )
    if cell is None:
        return
    tuning.plot(tuning.read(out), out / "tuning.png")
    for strategy, curve in cell["curves"].items():
        screen.print(
            f"{strategy}: {curve[15]:.0%}, {curve[31]:.0%}, {curve[63]:.0%} of the best candidate's speed after 16, 32, 64 trials"
        )
    screen.print(
        f"best of {cell['candidates']}: {1 / cell['best_ratio']:.2f}x the predicted choice -> {out}/tuning.png"
    )
