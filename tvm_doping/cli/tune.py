"""`tvm-doping tune`: run folder, a budget -> tuning records."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from tvm_doping.cli.show import console


def tune(
    run: Annotated[Path, typer.Argument(help="Run folder that `tvm-doping train` wrote.", metavar="MODEL")],
    target: Annotated[
        str,
        typer.Option(metavar="NAME", help="Machine to tune for: auto (this one), or a name of `targets`."),
    ] = "auto",
    trials: Annotated[
        int, typer.Option(min=1, metavar="N", help="Candidates to measure for each layer.")
    ] = 64,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01, metavar="M", help="Minutes for all layers, in place of --trials.", show_default=False
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Workers that compile side by side; one is timed at a time.  [default: the cores, 8 at most]",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the job whose log is there.")] = False,
    log: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder for log.jsonl.  [default: tuning/NAME-OF-RUN]", show_default=False
        ),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder to add the records to.  [default: the one that `compile` reads by itself]",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Streams side by side to tune for.")] = 1,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads to tune for.")] = 1,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="How low stored weights may go: exact, fp16, bf16 or int8.")
    ] = "exact",
    strategy: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How candidates are found: xgboost, evolutionary (without a cost model), random or exhaustive.",
        ),
    ] = "xgboost",
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the search's chance.")] = 0,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="S", help="Seconds for a candidate; a slower one is skipped.")
    ] = 60.0,
    only: Annotated[
        str,
        typer.Option(
            metavar="REGEX", help="Tune the layers whose name this matches alone.", show_default=False
        ),
    ] = "",
    tracker: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="RPC tracker that lends the devices to measure on.", show_default=False
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="K", help="Key that the tracker's devices are registered as.", show_default=False
        ),
    ] = None,
    cpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How records call the CPU of the tracker's devices.  [default: the key]",
            show_default=False,
        ),
    ] = None,
    cores: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Cores to time on, as 2,3.  [default: the last ones]", show_default=False
        ),
    ] = None,
    lock: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File that is held while timing, against other jobs.  [default: one of this user's]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Find the fastest schedule of each layer here, and keep it.

    `tvm-doping compile` then uses it by itself. A job that is stopped, or killed, goes on with --resume.

    Example: tvm-doping tune runs/small --trials 64
    """
    from tvm_doping.errors import InvalidInput, TuningError
    from tvm_doping.targets import resolve

    machine, screen = resolve(target), console()
    folder = log or Path("tuning") / run.resolve().name
    try:
        timed = [int(core) for core in cores.split(",")] if cores else None
    except ValueError:
        raise InvalidInput("--cores", "numbers of cores", repr(cores), "For example --cores 2,3.") from None
    from tvm_doping.tuning import tune as search  # takes seconds: only once the rest is in order

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)  # or the workers would be left
    try:
        paths = search(
            run,
            machine,
            trials=trials,
            minutes=minutes,
            jobs=jobs,
            resume=resume,
            log=folder,
            records=records,
            batch=batch,
            threads=threads,
            precision=precision,  # type: ignore[arg-type]
            strategy=strategy,  # type: ignore[arg-type]
            seed=seed,
            timeout=timeout,
            only=only,
            tracker=tracker,
            key=key,
            cpu=cpu,
            cores=timed,
            lock=lock,
            echo=screen.print,
        )
    except KeyboardInterrupt:
        raise TuningError(
            "the tuning job",
            "to end by itself",
            "a signal to stop",
            f"Go on with --resume; its log is in {folder}.",
        ) from None
    for path in paths:
        screen.print(f"records -> {path}")
