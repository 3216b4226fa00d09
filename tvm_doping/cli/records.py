"""`tvm-doping records`: look at tuning records, check them, and merge those of several runs or machines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tvm_doping.cli.show import console, table

if TYPE_CHECKING:
    from tvm_doping.records import Record, Weight
    from tvm_doping.records.files import AnyRecord

records = typer.Typer(
    name="records",
    help="Look at tuning records, check them, and merge them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Places = Annotated[
    list[Path] | None,
    typer.Argument(help="Files or folders.  [default: those that ship and your own]", metavar="[PLACE]..."),
]


@records.command()
def ls(places: Places = None) -> None:
    """List all records: layer, times, and the gain over the choice of the cost model.

    Example: tvm-doping records ls
    """
    from tvm_doping.records import read

    out = console()
    columns = (
        *("operation", "layer", "precision", ">batch", ">threads"),
        *("schedule", ">us (T)", ">gain", ">trials", "created"),
    )
    for path in _paths(places):
        file = read(path)
        rows = table(f"{path}: {file.device.cpu}, {file.device.target}", *columns)
        for r in file.records:
            rows.add_row(
                file.operation,
                *_described(r),
                ", ".join(f"{us:.4g} ({T})" for T, us in r.us.items()),
                f"{r.gain:.2f}x",
                str(r.trials),
                r.created[:10],
            )
        out.print(rows)


@records.command()
def show(path: Annotated[Path, typer.Argument(help="File of records.", metavar="FILE")]) -> None:
    """Print a file of records as JSON, once it is found to be in order.

    Example: tvm-doping records show FOLDER/x86-64-v3-amd-epyc/lstm.json
    """
    from tvm_doping.records import read
    from tvm_doping.records.files import to_text

    typer.echo(to_text(read(path)), nl=False)


@records.command()
def check(places: Places = None) -> None:
    """Check files of records; the first fault ends it.

    Example: tvm-doping records check my-records
    """
    from tvm_doping.records import read

    for path in _paths(places):
        file = read(path)
        typer.echo(f"{path}: {len(file.records)} records of {file.operation} on {file.device.cpu}, in order")


@records.command()
def merge(
    places: Annotated[list[Path], typer.Argument(help="Files or folders to take from.", metavar="PLACE...")],
    out: Annotated[Path, typer.Option(help="Folder to add them to.", metavar="FOLDER")],
) -> None:
    """Add records to a folder, machine by machine; of two for the same layer the faster is kept.

    Example: tvm-doping records merge monday friday --out my-records
    """
    from tvm_doping.records import read, save

    found = [read(path) for path in _paths(places)]  # a damaged file is told before anything is written
    for file in found:
        typer.echo(f"{len(file.records)} records -> {save(out, file.device, file.operation, file.records)}")


def _paths(places: list[Path] | None) -> list[Path]:
    from tvm_doping.errors import RecordError
    from tvm_doping.records import own_folder
    from tvm_doping.records.book import shipped_folder

    if not places:
        places = [place for place in (shipped_folder(), own_folder()) if place.is_dir()]
    found: list[Path] = []
    for place in places:
        inside = sorted(place.glob("**/*.json")) if place.is_dir() else [place]
        if not inside and place not in (shipped_folder(), own_folder()):
            raise RecordError(str(place), "files of records (*.json)", "none", "Name another folder.")
        found += inside
    return found


def _described(record: AnyRecord) -> tuple[str, str, str, str, str]:
    """Layer, precision, batch, threads and schedule."""
    from tvm_doping.records import Record

    if not isinstance(record, Record):
        shapes = ", ".join("x".join(map(str, shape)) for shape in record.shapes)
        return f"{record.name}: {shapes}", "exact", "", "1", f"a trace of {len(record.trace[0])} steps"
    key = record.key
    layer = "; ".join(_weight(weight) for weight in key.weights.values())
    return layer, key.precision, str(key.batch), str(key.threads), _schedule(record)


def _weight(weight: Weight) -> str:
    s = f" + S of {weight.nnz:,} {weight.pattern}, {weight.fill:.0%} filled" if weight.nnz else ""
    return f"{weight.rows} x {weight.columns} {weight.kind}{s}"


def _schedule(record: Record) -> str:
    def way(name: str) -> str:
        w = record.choice.ways[name]
        params = "".join(f" {key}={value}" for key, value in w.params.items())
        return f"{w.format or 'none'}{params}{'' if w.values == 'fp32' else ' ' + w.values}"

    n = record.choice.numbers
    return f"{', '.join(way(name) for name in record.choice.ways)}; {n.lanes} lanes, tile {n.tile}, steps {n.steps}"
