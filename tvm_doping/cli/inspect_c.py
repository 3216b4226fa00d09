"""What `tvm-doping inspect` shows of a folder of C."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvm_doping.cli.show import shape, size, table

if TYPE_CHECKING:
    from rich.console import Console

    from tvm_doping.freestanding.report import Report


def show_c(report: Report, out: Console) -> None:
    """Print its signature, its layers, and what it needs of memory."""
    signature = table(f"{report.name} in C, for {report.target.name}", "", "name", "shape", "dtype")
    for word in ("inputs", "state", "outputs"):
        for spec in getattr(report, word):
            signature.add_row(word, spec.name, shape(spec.shape), spec.dtype)
    out.print(signature)
    if report.layers:
        layers = table("layers", "layer", "structure", "format", ">bytes", "why")
        for layer in report.layers:
            layers.add_row(layer.name, layer.structure, layer.format, size(layer.bytes), layer.reason)
        out.print(layers)
    stored = table("", "", "")
    stored.show_header = False
    where = "in the program" if report.weights == "object" else "in weights.bin"
    sizes = report.sizes
    stored.add_row("functions", f"{report.prefix}_init, ..., for {report.batch} stream(s)")
    at_once = f"{report.steps} at once" + ("" if report.streaming else ", and no more in all")
    stored.add_row("time steps", at_once)
    stored.add_row("code", f"{size(sizes.code)} of kernels, with their constants")
    stored.add_row("weights", f"{size(sizes.weights)}, {where}")
    stored.add_row("RAM of an instance", f"{size(sizes.memory)}, of it the state {size(sizes.state)}")
    stored.add_row("stack", f"{size(sizes.frame)} in the largest frame of a kernel")
    error = "not run when compiled" if report.golden_error is None else f"{report.golden_error:.2g}"
    stored.add_row("error against PyTorch", f"{error} (tolerance {report.tolerance:.2g})")
    stored.add_row(
        "made with", ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()))
    )
    out.print(stored)
