"""`tvm-doping targets`: the machines that can be compiled for, and what this one is."""

from __future__ import annotations

import typer

from tvm_doping.cli.show import console, size, table


def targets() -> None:
    """List the targets, and what this machine is."""
    from tvm_doping import targets as known
    from tvm_doping.errors import TargetError

    out = console()
    rows = table("", "target", ">lanes", ">L1", ">L2", ">L3", "runs here", "features beyond the level before")
    before: set[str] = set()
    arch = ""
    for row in known.TARGETS.values():
        before, arch = before if row.arch == arch else set(), row.arch
        missing = known.missing_features(row.features)
        rows.add_row(
            row.name,
            str(row.lanes),
            *map(size, (row.l1, row.l2, row.l3)),
            f"no: lacks {' '.join(missing)}" if missing else "yes",
            " ".join(sorted(set(row.features) - before)),
        )
        before = set(row.features)
    out.print(rows)
    try:
        here = known.detect()
    except TargetError as error:
        typer.echo(f"auto: none. {error}")
        return
    caches = " ".join(
        f"L{level} {size(count)}" for level, count in ((1, here.l1), (2, here.l2), (3, here.l3))
    )
    out.print(f"auto (this machine): {here.name}, {known.cpu_name()}, {here.cores} cores, {caches}")
