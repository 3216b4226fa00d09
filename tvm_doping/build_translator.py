"""From a trained translator to a folder that translates: encoder and decoder as bundles, and the subwords of both languages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tvm_doping import checkpoint
from tvm_doping.build import compile
from tvm_doping.bundle import Bundle
from tvm_doping.errors import BundleError, CheckpointError
from tvm_doping.models import load_model
from tvm_doping.models.tasks.seq2seq import Translator
from tvm_doping.places import check_replaceable, check_writable, write_folder
from tvm_doping.translating import DECODER, ENCODER, FILE, TranslatorFile

TASK = "translation"
_SENTENCE = 16  # time steps of an encoder's call to be fast for: a sentence


def compile_translator(
    run: str | os.PathLike[str], out: str | os.PathLike[str], **options: Any
) -> dict[str, Bundle]:
    """Compile a run folder of the task "translation" into the folder `out`, for `translating.TranslatorSession`.

    The encoder is compiled for one sentence at a time, the decoder for steps of as many streams as the beam is wide; options are
    those of `compile` but example, batch, steps and head. Returns the two bundles by name. The folder appears whole or not at
    all. Raises CheckpointError for a run of another task.
    """
    config = checkpoint.read_config(run)
    if config.get("task") != TASK:
        got = repr(config.get("task"))
        raise CheckpointError(f"task of {run}", TASK, got, "Compile it with tvm_doping.compile.")
    folder = Path(out).resolve()
    check_replaceable(folder, FILE, BundleError)
    check_writable(folder.parent, BundleError, str(folder))
    model = load_model(run)
    assert isinstance(model, Translator)
    file = TranslatorFile(
        name=Path(run).resolve().name,
        source_subwords=config["source_subwords"],
        target_subwords=config["target_subwords"],
        beam=model.beam,
        penalty=model.penalty,
        metrics=config.get("metrics") or {},
    )
    dump = options.pop("dump", None)
    bundles = {}
    for name, batch, steps in ((ENCODER, 1, _SENTENCE), (DECODER, model.beam, 1)):
        place = None if dump is None else Path(dump) / name
        bundles[name] = compile(getattr(model, name), batch=batch, steps=steps, dump=place, **options)

    def write(fresh: Path) -> None:
        for name, bundle in bundles.items():
            bundle.save(fresh / name)
        (fresh / FILE).write_text(f"{file.model_dump_json(indent=1)}\n", encoding="utf-8")

    write_folder(folder, write, BundleError)
    return bundles
