"""`tvm-doping inspect`: what a bundle, a folder of C or a run folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvm_doping.cli.show import console, measured, ratio, shape, size, table

if TYPE_CHECKING:
    from rich.console import Console

    from tvm_doping.bundle import Bundle
    from tvm_doping.checkpoint import Checkpoint
    from tvm_doping.manifest import LayerReport

_NOMINAL_GHZ = 3.0  # of the predicted times shown: what a server core sustains, roughly


def inspect(
    path: Annotated[Path, typer.Argument(help="Bundle, folder of C, or run folder.", metavar="BUNDLE|C|RUN")],
    json: Annotated[
        bool, typer.Option("--json", help="Print a bundle's manifest, or a run's config, as JSON.")
    ] = False,
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Of a bundle for several targets, the one to show: auto is the best that this CPU can run, if any.",
        ),
    ] = "auto",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check every file and variant of a bundle, and what its libraries say of themselves; runs none of it.",
        ),
    ] = False,
) -> None:
    """Show what a bundle or a run folder holds.

    That is: shapes, formats, sizes, compression, and the schedule chosen and why. Checks a bundle as loading
    does, but also shows bundles made for another machine. None of their code is run.

    Example: tvm-doping inspect bundles/small
    """
    from tvm_doping import checkpoint
    from tvm_doping.errors import InvalidInput

    if (path / "bundle.json").exists():
        from tvm_doping.bundle import Bundle

        bundle = Bundle.load(path, target=target, any_machine=True)
        if verify:
            _show_verified(path, console())
        elif json:
            from tvm_doping.bundle_files import read_document

            typer.echo(read_document(path.resolve()).model_dump_json(indent=1))
        else:
            show_bundle(bundle, console())
    elif (path / "model.json").exists():
        from tvm_doping.cli.inspect_c import show_c
        from tvm_doping.freestanding.report import read_report

        report = read_report(path)
        if json:
            typer.echo(report.model_dump_json(indent=1))
        else:
            show_c(report, console())
    elif (path / checkpoint.CONFIG).exists() or checkpoint.is_started(path):
        from json import dumps

        run = checkpoint.load(path)
        if json:
            typer.echo(dumps(run.config, indent=1))
        else:
            _show_run(path, run, console())
    else:
        raise InvalidInput(
            str(path),
            "a bundle (bundle.json), C (model.json) or a run folder (config.json)",
            "a folder of neither" if path.is_dir() else "no folder",
            "Give the folder that `tvm-doping compile` or `tvm-doping train` wrote.",
        )


def show_bundle(bundle: Bundle, out: Console) -> None:
    """Print what a bundle is: signature, layers with their schedules, sizes, what it needs of a machine."""
    from tvm_doping.targets import missing_features

    manifest = bundle.manifest
    signature = table(f"{manifest.name}, compiled for {manifest.target.name}", "", "name", "shape", "dtype")
    for word in ("inputs", "state", "outputs"):
        for spec in getattr(manifest, word):
            signature.add_row(word, spec.name, shape(spec.shape), spec.dtype)
    out.print(signature)
    if len(bundle.targets) > 1:
        _show_targets(bundle, out)

    layers = table(
        "layers",
        "layer",
        "structure",
        "shape",
        "format",
        ">parameters",
        ">of dense",
        ">bytes",
        ">of dense",
        "schedule, and why",
    )
    for layer in manifest.layers:
        layers.add_row(
            layer.name,
            layer.structure,
            shape(layer.shape),
            layer.format
            if layer.values == "fp32"
            else f"{layer.format} in {layer.values}, {layer.rounding:.1e} off",
            f"{layer.parameters:,}",
            ratio(layer.dense_parameters, layer.parameters),
            size(layer.bytes),
            "-" if layer.plan.get("packed") else ratio(layer.dense_bytes, layer.bytes),
            ": ".join(part for part in (layer.kernel, layer.reason) if part),
        )
    if manifest.layers:
        out.print(layers)

    for layer in manifest.layers:
        _show_alternatives(layer, out)

    stored = table("", "", "")
    stored.show_header = False
    if manifest.compression is not None:
        by = manifest.compression
        stored.add_row(
            "compression",
            f"{by.by_parameters:.1f}x by parameters, {by.by_bytes:.1f}x by bytes stored, all layers",
        )
    doped = [layer for layer in manifest.layers if layer.parameters < layer.dense_parameters]
    if 0 < len(doped) < len(manifest.layers):
        once = [layer for layer in doped if not layer.tied]
        parameters = ratio(sum(x.dense_parameters for x in once), sum(x.parameters for x in once))
        stored_bytes = ratio(sum(x.dense_bytes for x in once), sum(x.bytes for x in doped))
        stored.add_row(
            "", f"{parameters} by parameters, {stored_bytes} by bytes stored, {len(doped)} doped layers alone"
        )
    for name, value in measured(manifest.metrics):
        stored.add_row(name, value)
    code = (
        f"library {size(len(bundle.library))}, weights {size(bundle.bytes)} in {len(bundle.weights)} arrays"
    )
    stored.add_row("size", code)
    error = "not run when compiled" if manifest.golden_error is None else f"{manifest.golden_error:.2g}"
    against = "PyTorch" if manifest.precision == "exact" else "the weights as stored"
    stored.add_row(f"error against {against}", f"{error} (tolerance {manifest.tolerance:.2g})")
    for name, cost in manifest.precision_error.items():
        group, _, short = name.partition(".")
        what = f"cost of {manifest.precision}, {group.replace('_', ' ')} {short}"
        stored.add_row(what, f"{cost.max_abs:.2g} at most, {cost.relative:.2g} relative, against PyTorch")
    reason = f", as {manifest.no_stream}" if manifest.no_stream else ""
    stored.add_row("step by step", "yes" if manifest.streaming else f"no{reason}")
    missing = missing_features(manifest.target.features)
    stored.add_row("runs here", f"no: this CPU lacks {' '.join(missing)}" if missing else "yes")
    stored.add_row(
        "made with", ", ".join(f"{name} {version}" for name, version in sorted(manifest.versions.items()))
    )
    if manifest.records:
        stored.add_row("tuning records", ", ".join(manifest.records))
    out.print(stored)


def _show_targets(bundle: Bundle, out: Console) -> None:
    """The variants of a bundle, and which of them runs here."""
    from tvm_doping.errors import BundleError
    from tvm_doping.fitting import choose_variant
    from tvm_doping.targets import missing_features

    parts = bundle.variants
    specs = [part.manifest.target for part in parts]
    try:
        best = choose_variant(bundle.manifest.name, specs)
    except BundleError:
        best = -1
    rows = table("targets, the best first", "target", ">library", ">weights", "formats", "runs here")
    for index, part in enumerate(parts):
        missing = missing_features(part.manifest.target.features)
        mark = "yes: this one" if index == best else "yes"
        formats = sorted({name for layer in part.manifest.layers for name in layer.format.split(", ")})
        rows.add_row(
            part.manifest.target.name,
            size(len(part.library)),
            size(part.bytes),
            ", ".join(formats),
            f"no: lacks {' '.join(missing)}" if missing else mark,
        )
    if bundle.folder is not None:
        from tvm_doping.bundle_files import WEIGHTS, read_document

        stored = read_document(bundle.folder).files[WEIGHTS].bytes
        rows.caption = f"weights together {size(stored)} as stored: equal arrays once"
    out.print(rows)
    out.print(f"below: {bundle.manifest.target.name}")


def _show_verified(path: Path, out: Console) -> None:
    from tvm_doping.verifying import verify

    rows = table(f"{path}: all in order; nothing of it was run", "checked", "found")
    for what, found in verify(path):
        rows.add_row(what, found)
    out.print(rows)


def _show_alternatives(layer: LayerReport, out: Console) -> None:
    """What the schedule weighed for each product of a layer. Times are cycles at a nominal clock: only their ratios count."""
    names = {"input": "W_ih", "recurrent": "W_hh", "product": "W"}
    weighed = table(
        f"{layer.name}: what was weighed, fastest first (predicted, a step, at {_NOMINAL_GHZ:g} GHz)",
        *("", "format", ">lanes", ">tile", ">cycles", ">µs", ">bytes", "why"),
    )
    for key, name in names.items():
        product = layer.plan.get(key, {})
        others = product.get("alternatives", [])
        dense = product.get("part", {}).get("kind") == "dense" and not product.get("sparse")
        chosen = ("dense" if dense else product.get("sparse"), product.get("values"), product.get("dot", ""))
        # the two products of a layer share a width, which need not be the one that this product was weighed at
        config = layer.plan.get("config", {})
        width = config.get("lanes"), config.get("tile")
        exact = any((other["lanes"], other["tile"]) == width for other in others if _way(other) == chosen)
        for other in others:
            fits = (other["lanes"], other["tile"]) == width or not exact
            mark = " *" if _way(other) == chosen and fits else ""
            narrow = "" if other["values"] == "fp32" else f" {other['values']}"
            weighed.add_row(
                name,
                f"{other['format'] or 'none'}{narrow}{mark}",
                str(other["lanes"]),
                str(other["tile"]),
                f"{other['cycles']:,}",
                f"{other['cycles'] / _NOMINAL_GHZ / 1e3:.1f}",
                size(other["bytes"]),
                other["reason"],
            )
    if weighed.row_count:
        weighed.caption = "* chosen; a much smaller format is preferred to one that is a little faster"
        out.print(weighed)


def _way(alternative: dict[str, Any]) -> tuple[str | None, str, str]:
    return alternative["format"], alternative["values"], alternative.get("dot", "")


def _show_run(path: Path, run: Checkpoint, out: Console) -> None:
    from tvm_doping.structures import compression, describe

    rows = table(
        f"run {path}", "parameter", "structure", "shape", ">parameters", ">of dense", ">density of S"
    )
    for name, structure in run.structures.items():
        counted = compression(structure)
        density = getattr(structure, "density", None)
        rows.add_row(
            name,
            describe(structure),
            shape(structure.shape),
            f"{counted.parameters:,}",
            f"{counted.by_parameters:.1f}x",
            "-" if density is None else f"{density:.2%}",
        )
    for name, tensor in run.tensors.items():
        rows.add_row(name, "stored as it is", shape(tensor.shape), f"{tensor.size:,}", "1.0x", "-")
    out.print(rows)
    if run.structures:
        counted = compression(*run.structures.values())
        out.print(f"structured weights: {counted.by_parameters:.1f}x by parameters; by bytes, once compiled")
