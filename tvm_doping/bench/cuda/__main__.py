"""`python -m tvm_doping.bench.cuda prepare KIT`, where there is nvcc; `... measure KIT`, where there is a GPU: it tunes, if it can
compile there, and measures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tvm_doping import gpu
from tvm_doping.bench.cuda import checks, kit
from tvm_doping.bench.cuda.cells import FULL, MODELS, QUICK, Cell
from tvm_doping.bench.cuda.measure import measure
from tvm_doping.bench.cuda.tune import tune_kit
from tvm_doping.errors import DopingError, TargetError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: 0, or 2 after one message where the user can mend it."""
    parser = argparse.ArgumentParser(prog="python -m tvm_doping.bench.cuda", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    first = verbs.add_parser("prepare", help="Compile all models into a folder to carry to the GPU.")
    second = verbs.add_parser("measure", help="Tune them there, and measure them against cuDNN.")
    first.add_argument("kit", type=Path)
    first.add_argument("--target", default="cuda-sm90", help="cuda-sm90 or cuda-sm80")
    second.add_argument("kit", type=Path)
    second.add_argument(
        "--out", type=Path, default=Path("results"), help="folder for cuda-*.json, one a cell"
    )
    second.add_argument(
        "--minutes",
        type=float,
        default=9.0,
        help="begin no cell that would end later; give it again to go on",
    )
    second.add_argument(
        "--tune",
        type=float,
        default=9.0,
        metavar="MINUTES",
        help="search schedules for so long before; 0: compare what the schedules predict alone",
    )
    second.add_argument("--seconds", type=float, default=2.0, help="of measuring, a cell")
    for verb in (first, second):
        verb.add_argument("--quick", action="store_true", help="H 650 and 1500, 1 and 32 streams only")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "prepare":
            sizes = {cell.H for cell in (QUICK if options.quick else FULL)}
            kit.prepare(options.kit, [m for m in MODELS if m.H in sizes], options.target, print)
        else:
            cells = QUICK if options.quick else FULL
            right = isinstance(gpu.compute_capability(), str) or checks.run(options.kit, options.out)
            if options.tune > 0:
                _tune(options.kit, options.out, cells, options.tune)
            measure(
                options.kit,
                options.out,
                cells,
                minutes=options.minutes,
                seconds=options.seconds,
            )
            return 0 if right else 2
    except DopingError as error:
        print(f"tvm-doping: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _tune(kit_folder: Path, out: Path, cells: Sequence[Cell], minutes: float) -> None:
    """Tune; a machine that cannot is told why, and measures what the kit has."""
    try:
        tune_kit(kit_folder, out, cells, minutes=minutes)
    except (TargetError, ImportError) as error:
        print(f"not tuned: {' '.join(str(error).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
