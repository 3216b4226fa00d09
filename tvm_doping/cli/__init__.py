"""The command line, `tvm-doping` or `python -m tvm_doping`: one file a verb, which parses and calls.

Nothing heavy is imported before a verb runs, so that every `--help` is instant.
"""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer

from tvm_doping.cli import (
    bench,
    bench_accuracy,
    bench_choice,
    bench_matrix,
    bench_predict,
    bench_tuning,
    compile,
    compress,
    farm,
    inspect,
    records,
    run,
    targets,
    train,
    tune,
)
from tvm_doping.errors import DopingError, UnfinishedWarning

app = typer.Typer(
    name="tvm-doping",
    help="Train LSTMs whose weights are structured plus extremely sparse, and compile them with Apache TVM.",
    epilog="train, compress -> run folder; compile -> bundle; inspect, run and bench take what these two wrote.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    train.train,
    compress.compress,
    compile.compile,
    tune.tune,
    inspect.inspect,
    run.run,
    bench.bench,
    bench_matrix.bench_matrix,
    bench_choice.bench_choice,
    bench_predict.bench_predict,
    bench_accuracy.bench_accuracy,
    bench_tuning.bench_tuning,
    targets.targets,
):
    app.command()(verb)
app.add_typer(records.records)
app.add_typer(farm.farm)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0, or 2 after one message where the user can mend it."""
    show = warnings.showwarning

    def one_line(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, UnfinishedWarning):
            print(f"tvm-doping: warning: {message}", file=sys.stderr)
        else:
            show(message, category, *place, **more)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = one_line  # type: ignore[assignment]
            app(arguments)
    except DopingError as error:
        # one line: what a user acts on; a traceback is for errors of the program
        print(f"tvm-doping: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=lambda on: _print_version(on)),
    ] = False,
) -> None:
    pass


def _print_version(on: bool) -> None:
    if on:
        typer.echo(sys.modules["tvm_doping"].__version__)
        raise typer.Exit
