"""The passes of a compilation, in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tvm_doping.passes.choose import Choose
from tvm_doping.passes.context import Context, Pass
from tvm_doping.passes.drop_broadcasts import DropBroadcasts
from tvm_doping.passes.fuse import Fuse
from tvm_doping.passes.lift_weights import LiftWeights
from tvm_doping.passes.lower import Lower
from tvm_doping.passes.lower_heads import LowerHeads
from tvm_doping.passes.match_embedding import MatchEmbedding
from tvm_doping.passes.match_head import MatchHead
from tvm_doping.passes.match_linear import MatchLinear
from tvm_doping.passes.pack import Pack
from tvm_doping.passes.recall import Recall
from tvm_doping.passes.recover_structure import RecoverStructure


def pipeline(context: Context) -> list[Pass]:
    """From an imported model to loops."""
    if context.target.gpu:
        return [
            DropBroadcasts(context),
            MatchLinear(context),
            RecoverStructure(context),
            Choose(context),
            Pack(context),
            Fuse(context),
            Lower(context),  # look-ups, argmax and the like as well
            LiftWeights(context),
        ]
    return [
        DropBroadcasts(context),  # matmul of repeated factors -> of the factors
        MatchLinear(context),  # x W^T + b -> doping.linear
        MatchEmbedding(context),  # rows of a doped table -> doping.embedding
        RecoverStructure(context),  # weights -> doping.weight: B (x) C + S, ...
        Choose(context),  # a plan for every layer
        Pack(context),  # weights -> the plan's arrays
        MatchHead(context),  # argmax, ... of a layer -> its kernel
        Fuse(context),  # a layer -> one kernel
        LowerHeads(context),  # the other argmax, ... -> kernels of their own
        Lower(context),  # the rest -> TVM's own loops
        Recall(context),  # dense loops -> the schedules that tuning found
        LiftWeights(context),  # constants -> the parameter `weights`
    ]


def run_passes(
    mod: Any,
    passes: Sequence[Pass],
    dump: str | os.PathLike[str] | None = None,
    observe: Callable[[Pass, Any], None] = lambda run, mod: None,
) -> Any:
    """The module after all passes; dump: a folder for the IR, one NN_name.py before the first and after each.

    observe(run, mod) is called with each pass and the module after it.
    """
    _write(dump, 0, "Import", mod)
    for number, run in enumerate(passes, 1):
        mod = run(mod)
        observe(run, mod)
        _write(dump, number, type(run).__name__, mod)
    return mod


def _write(dump: str | os.PathLike[str] | None, number: int, name: str, mod: Any) -> None:
    if dump is None:
        return
    folder = Path(dump)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:02d}_{name}.py"
    partial = path.with_suffix(".partial")
    # constants stay out of the text: a layer of 2600x650 would be 30 MB of JSON
    partial.write_text(mod.script(show_meta=False), encoding="utf-8")
    os.replace(partial, path)
