"""`tvm-doping compress`: a model that was trained dense -> run folder of a doped one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvm_doping.cli.show import console, ratio, settings, shape, size, table

if TYPE_CHECKING:
    from rich.console import Console

    from tvm_doping.models.compression_report import Report


def compress(
    model: Annotated[
        str,
        typer.Argument(
            help="What makes the model, file.py:factory or package.module:factory; or a run folder of `tvm-doping train`.",
            metavar="MODEL",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Run folder to write.  [default: runs/NAME-compressed]", show_default=False
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="State dict of the trained model, in safetensors, for a factory.",
            show_default=False,
        ),
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Argument of the factory, e.g. hidden=200; repeatable."),
    ] = None,
    structure: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Structured part: kronecker, low_rank, hybrid or zero (S alone: pruning)."
        ),
    ] = "kronecker",
    compression: Annotated[
        float,
        typer.Option(
            metavar="X", help="Entries of a weight to parameters of what it becomes, for each weight."
        ),
    ] = 20.0,
    pattern: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Where S may have entries: unstructured, nm32, block4, block8 or block16."
        ),
    ] = "unstructured",
    modules: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Modules or weights to compress, e.g. 'lstm*'; repeatable.  [default: every nn.LSTM and nn.Linear]",
            show_default=False,
        ),
    ] = None,
    factors: Annotated[
        str | None,
        typer.Option(
            metavar="RxC",
            help="Shape of B; or dense rows x rank of a hybrid.  [default: the one of least error]",
            show_default=False,
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="R",
            help="Rank of low_rank.  [default: the one of least error]",
            show_default=False,
        ),
    ] = None,
    sparse: Annotated[
        bool, typer.Option(help="Add S; --no-sparse gives the structured part the whole budget.")
    ] = True,
    samples: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="file.py:function that returns a list of inputs (tensors or tuples): errors of outputs are reported.",
            show_default=False,
        ),
    ] = None,
    finetune: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="file.py:function, a training loop f(model, finetuning); see docs/training.md.",
            show_default=False,
        ),
    ] = None,
    anneal: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the fine-tuning's steps over which S is thinned.")
    ] = 0.5,
    cmr: Annotated[float, typer.Option(metavar="RATE", help="Co-matrix dropout while S is thinned.")] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compress a model that was trained dense: the nearest structured part plus S, then fine-tuning, if named.

    MODEL's code is yours, and is run. Reports for each weight its size and its error, before and after fine-tuning.

    Example: tvm-doping compress app.py:make_model --weights app.safetensors --compression 10 --finetune app.py:finetune
    """
    from tvm_doping.models.compressing import compress as start

    folder = out or Path("runs") / f"{Path(model).name.replace('.py:', '-').replace(':', '-')}-compressed"
    done = start(
        model,
        folder,
        arguments=settings(arg, "--arg", "hidden=200"),
        weights=weights,
        structure=structure,  # type: ignore[arg-type]
        compression=compression,
        pattern=pattern,
        modules=modules or None,
        factors=_pair(factors),
        rank=rank,
        sparse=sparse,
        samples=samples,
        finetune=finetune,
        anneal=anneal,
        cmr=cmr,
    )
    if json:
        from json import dumps

        typer.echo(dumps({**done.report.as_json(), "folder": str(done.folder)}, indent=1))
        return
    screen = console()
    show_report(done.report, screen)
    named = f" --factory {model}" if ":" in Path(model).name else ""
    screen.print(f"-> {done.folder}; compile it with: tvm-doping compile {done.folder}{named}")


def show_report(report: Report, out: Console) -> None:
    """Print a table of the weights, and a line on the whole model."""
    errors: list[tuple[str, Any]] = [("error", lambda w: w.error)]
    if any(weight.output_error is not None for weight in report.weights):
        errors.append(("of outputs", lambda w: w.output_error))
    if report.was_finetuned:
        errors.append(("error, fine-tuned", lambda w: w.finetuned_error))
        if len(errors) > 2:
            errors.append(("of outputs, fine-tuned", lambda w: w.finetuned_output_error))
    rows = table(
        "compressed weights",
        *("weight", "becomes", "shape", ">parameters", ">of dense", ">bytes", ">of dense", "S stored as"),
        *(f">{name}" for name, _ in errors),
    )
    for weight in report.weights:
        rows.add_row(
            weight.name,
            weight.structure,
            shape(weight.shape),
            f"{weight.parameters:,}",
            ratio(weight.dense_parameters, weight.parameters),
            size(weight.bytes),
            ratio(weight.dense_bytes, weight.bytes),
            weight.format,
            *(_share(of(weight)) for _, of in errors),
        )
    rows.caption = (
        "error: ||W - W'|| / ||W||; of outputs: of the weight's products with what it meets on the samples"
    )
    out.print(rows)
    out.print(
        f"whole model: {report.dense_parameters:,} -> {report.parameters:,} parameters ({report.by_parameters:.1f}x), "
        f"{size(report.dense_bytes)} -> {size(report.bytes)} ({report.by_bytes:.1f}x by bytes)"
    )
    if report.output_error is not None:
        after = f"; fine-tuned {_share(report.finetuned_output_error)}" if report.was_finetuned else ""
        out.print(f"error of the model's outputs on the samples: {_share(report.output_error)}{after}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _pair(text: str | None) -> tuple[int, int] | None:
    """ "10x20" as numbers."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.strip().isdigit() for part in parts):
        from tvm_doping.errors import InvalidInput

        raise InvalidInput("--factors", "ROWSxCOLUMNS", repr(text), "For example --factors 10x20.")
    return int(parts[0]), int(parts[1])
