"""`tvm-doping bench-predict`: speeds on a core that is not here -> predict.json, predict.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tvm_doping.cli.show import console


def bench_predict(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="Run folder whose LSTM layers are meant.  [default: untrained ones of many sizes]",
            metavar="[RUN]",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Core: cortex-a53, cortex-a72, cortex-a76, neoverse-n1 or x86-64-v3."
        ),
    ] = "cortex-a72",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for predict.json and predict.md.  [default: results/predict/NAME]",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILTER",
            help="Hold axes to values, as H=650/1500,compression=10; repeatable. Axes: H, compression, pattern, batch, T.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="How low stored weights may go: exact, fp16, bf16 or int8.")
    ] = "exact",
    kit: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Instead build programs to carry to such a device, and a script that times them there.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Predict for this machine (x86-64-v3), time it, and state the error."),
    ] = False,
) -> None:
    """Predict speeds on a core from its instructions and data.

    Nothing runs on the core: llvm-mca models it, an emulator counts how often each loop runs, and a table holds its bandwidths.
    Needs llvm, qemu-user-static and the target's cross compiler (apt-get names).

    Example: tvm-doping bench-predict --target cortex-a72 --only H=650
    """
    screen = console()
    if check:
        _check(out or Path("results/predict/check"))
        return
    if kit is not None:
        from tvm_doping.bench.predict.kit import write_kit

        script = write_kit(kit, target, only=tuple(only or ()), echo=screen.print)
        screen.print(f"Copy {kit} to the device and run there: python3 {script.name}")
        return
    write_predictions(
        run, target, out or Path("results/predict") / target, tuple(only or ()), precision, echo=screen.print
    )


def write_predictions(
    run: Path | None,
    target: str,
    out: Path,
    only: tuple[str, ...] = (),
    precision: str = "exact",
    steps: tuple[int, ...] = (1,),
    batch: int = 1,
    *,
    echo: Callable[[str], None],
) -> None:
    """Predict for a run folder's layers, or for the sizes of the table, and say where the results are."""
    from tvm_doping.bench import predict
    from tvm_doping.bench.report import check_folder
    from tvm_doping.errors import InvalidInput
    from tvm_doping.models import load_model

    check_folder(out)
    if run is None:
        results = predict.run(target, only=only, precision=precision, echo=echo)
    elif only:
        raise InvalidInput(
            "--only", "no run folder", f"{', '.join(only)} and {run}", "Leave one of them out."
        )
    else:
        results = predict.of_model(
            load_model(run).eval(), target, steps=steps, batch=batch, precision=precision
        )
    paths = predict.write(results, out)
    echo(predict.markdown(results))
    for name, path in paths.items():
        echo(f"{name}: {path}")


def _check(out: Path) -> None:
    import tempfile

    from tvm_doping.bench.predict import validate
    from tvm_doping.bench.predict.devices import device_of

    screen, device = console(), device_of("x86-64-v3")
    with tempfile.TemporaryDirectory(prefix="tvm-doping-") as folder:
        validate.prepare(Path(folder), device, echo=screen.print)
        results = validate.time(Path(folder), device)
    for name, path in validate.write(results, out).items():
        screen.print(f"{name}: {path}")
    screen.print(validate.markdown(results))
