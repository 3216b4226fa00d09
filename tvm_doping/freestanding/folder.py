"""The folder that a C program is built from: `CProgram`, and all of its files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvm_doping.bundle_files import record_of
from tvm_doping.errors import BundleError
from tvm_doping.freestanding.golden import golden_file, main_file, measure_file
from tvm_doping.freestanding.report import NAME, Report
from tvm_doping.freestanding.source import Source, fill
from tvm_doping.freestanding.spelling import ctype
from tvm_doping.places import check_replaceable, write_folder


@dataclass(frozen=True, kw_only=True, eq=False)
class CProgram:
    """A compiled model as C: report (sizes, shapes, how it was made) and files, name -> contents, model.json among them."""

    report: Report
    files: Mapping[str, bytes]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the folder: all of it or nothing. Replaces a folder of C, never anything else."""
        folder = Path(folder).resolve()
        check_replaceable(folder, NAME, BundleError)
        write_folder(folder, self._write, BundleError)
        return folder

    def _write(self, folder: Path) -> None:
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def c_program(
    source: Source,
    golden: Mapping[str, np.ndarray],
    report: Report,
) -> CProgram:
    """All the files."""
    p = source.prefix
    texts = {
        f"{p}.h": source.header(),
        f"{p}.c": source.code(),
        "main.c": main_file(source, dict(golden), report.tolerance),
        "measure.c": measure_file(source),
        "Makefile": _makefile(source),
        "README.md": _readme(source, report),
    }
    if source.embedded:
        texts["weights.S"] = fill("weights.S", **source.words())
    files = {name: text.encode() for name, text in texts.items()}
    files |= {
        "kernels.o": source.kernels.code,
        "weights.bin": source.weights_file(),
        "golden.bin": golden_file(source, dict(golden)),
    }
    files = dict(sorted(files.items()))
    whole = report.model_copy(update={"files": {name: record_of(content) for name, content in files.items()}})
    return CProgram(report=whole, files={**files, NAME: (whole.model_dump_json(indent=1) + "\n").encode()})


def _makefile(source: Source) -> str:
    target = source.target
    cross = "aarch64-linux-gnu-" if target.arch == "aarch64" else ""
    rule = ""
    if source.embedded:
        rule = "\nweights.o: weights.S weights.bin\n\t$(CC) -c -o $@ weights.S\n"
    return fill(
        "Makefile",
        **source.words()
        | {
            "triple": target.triple,
            # make's own CC is "cc": replaced, unless someone else has set it
            "cc": f"= {cross}gcc" if cross else "?= cc",
            "ar": f"{cross}ar",
            "run": "qemu-aarch64-static -L /usr/aarch64-linux-gnu" if cross and target.foreign else "",
            # painted stacks: the dynamic linker's own would count; macOS has no static programs
            "static": "" if "apple" in target.triple else "-static ",
            "weights_object": " weights.o" if source.embedded else "",
            "weights_rule": rule,
        },
    )


def _readme(source: Source, report: Report) -> str:
    return fill(
        "README.md",
        **source.words()
        | {
            "example": _example(source),
            "notes": _notes(source),
            "weights_note": ", which `weights.S` makes part of the program"
            if source.embedded
            else ", which the program maps or reads",
            "code_bytes": f"{report.sizes.code:,}",
            "weight_bytes": f"{report.sizes.weights:,}",
            "state_bytes": f"{report.sizes.state:,}",
            "memory": f"{report.sizes.memory:,}",
            "frame": f"{report.sizes.frame:,}",
            "libm": f", and of libm {', '.join(source.kernels.libm)}" if source.kernels.libm else "",
        },
    )


def _example(source: Source) -> str:
    p, upper = source.prefix, source.prefix.upper()
    lines = [f"static unsigned char memory[{upper}_MEMORY_SIZE];", f"struct {p} *model;"]
    more = ""
    if not source.embedded:
        lines.append(
            f"const void *weights = mmap(NULL, {upper}_WEIGHTS_SIZE, PROT_READ, MAP_SHARED, fd, 0); /* weights.bin */"
        )
        more = f", weights, {upper}_WEIGHTS_SIZE"
    lines.append(f"int error = {p}_init(&model, memory, sizeof memory{more});")
    names = source.parameter_names()
    specs = (*source.signature.inputs, *source.signature.outputs)
    step = ", ".join(names)
    for spec, name in zip(specs, names, strict=True):
        lines.append(
            f"{ctype(spec.dtype)} {name}[{source.inner(spec) * source.outer(spec)}];"
            + (" /* of one step */" if "T" in spec.shape else "")
        )
    if source.signature.streaming or not source.timed:
        lines.append(f"error = {p}_step(model, {step});")
    else:
        lines.append(f"error = {p}_run(model, 1, {step}); /* a whole sequence */")
    return "\n".join(lines) + "\n"


def _notes(source: Source) -> str:
    p, upper = source.prefix, source.prefix.upper()
    notes = [f"The model runs {source.program.batch} stream(s) side by side (`{upper}_BATCH`)."]
    if source.timed and source.signature.streaming:
        notes.append(
            f"`{p}_run` takes any number of steps and works on at most {source.program.steps} at once "
            f"(`{upper}_MAX_STEPS`, `--max-steps` when it was compiled): fewer need less RAM, more are faster."
        )
    elif source.timed:
        notes.append(
            f"The model is no stream: `{p}_run` takes a whole sequence, of at most {source.program.steps} steps "
            f"(`{upper}_MAX_STEPS`, `--max-steps` when it was compiled)."
        )
    if not source.embedded:
        notes.append(
            "The weights must lie at a multiple of 64 bytes, as `mmap` gives; instances may share them."
        )
    return " ".join(notes)
