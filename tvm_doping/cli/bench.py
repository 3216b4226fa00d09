"""`tvm-doping bench`: a model against dense baselines -> results.json, table, plots, one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvm_doping.bench import BASELINES
from tvm_doping.cli.bench_predict import write_predictions
from tvm_doping.cli.show import console


def bench(
    run: Annotated[Path, typer.Argument(help="Run folder that `tvm-doping train` wrote.", metavar="RUN")],
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Time this bundle of the model; without it, the model is compiled now."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for results.json, table, plots and page.")
    ] = Path("bench-output"),
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"A baseline to time against; repeatable: {', '.join(BASELINES)}.  [default: all of them]",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            metavar="T",
            help="Time steps T of a call; repeatable. What is compiled is optimised for the fewest.  [default: 1 and 35]",
            show_default=False,
        ),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCOPE",
            help="lstm (its layers alone) or model; repeatable.  [default: both]",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="NAME", help="Machine to compile for, where no bundle is given.")
    ] = "auto",
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Streams side by side.")] = 1,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How low stored weights may go: exact, fp16, bf16 or int8.  [default: the bundle's, or exact]",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads, the same for every engine.")] = 1,
    seconds: Annotated[
        float,
        typer.Option(min=1.0, metavar="X", help="Seconds of measuring; checks and compiling come on top."),
    ] = 60.0,
    predict: Annotated[
        bool,
        typer.Option(
            "--predict",
            help="Predict the LSTM layers' speed on the target instead (see `bench-predict --help`).",
        ),
    ] = False,
) -> None:
    """Time a model against dense runtimes.

    All run the same weights. Checks every engine's outputs first, then measures all of them interleaved.
    Needs `pip install tvm-doping[bench]`.

    Example: tvm-doping bench runs/small --bundle bundles/small --steps 1
    """
    from tvm_doping import bench as harness
    from tvm_doping.bench.report import check_folder
    from tvm_doping.errors import InvalidInput

    if predict:
        write_predictions(
            run, target, out, (), precision or "exact", tuple(steps or (1, 35)), batch, echo=console().print
        )
        return
    scopes = scope or ["lstm", "model"]
    for option, given, known in (
        ("--baseline", baseline or [], harness.BASELINES),
        ("--scope", scopes, ("lstm", "model")),
    ):
        for name in given:
            if name not in known:
                raise InvalidInput(
                    option, f"one of {', '.join(known)}", repr(name), "See `tvm-doping bench --help`."
                )
    check_folder(out)
    screen = console()
    results = harness.run(
        run,
        bundle=bundle,
        target=target,
        batch=batch,
        precision=precision,  # type: ignore[arg-type]
        steps=tuple(steps or (1, 35)),
        threads=threads,
        baselines=tuple(baseline or harness.BASELINES),
        scopes=tuple(scopes),  # type: ignore[arg-type]
        seconds=seconds,
        echo=screen.print,
    )
    screen.print(harness.table(results))
    for name, path in harness.write(results, out).items():
        screen.print(f"{name}: {path}")
