"""The golden run in C: golden.bin, and the program that compares with it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tvm_doping.freestanding.source import Source, fill
from tvm_doping.freestanding.spelling import ctype, identifier

Arrays = dict[str, np.ndarray]


def golden_file(source: Source, golden: Arrays) -> bytes:
    """golden.bin: inputs, state, outputs, new state and scores, one after the other."""
    return b"".join(np.ascontiguousarray(array).tobytes() for _, array, _ in _tensors(source, golden))


def main_file(source: Source, golden: Arrays, tolerance: float) -> str:
    """The text of main.c."""
    p, signature = source.prefix, source.signature
    tensors = _tensors(source, golden)
    names = {key: name for key, _, name in tensors}
    steps = _steps(source, golden)
    arrays = "".join(f"static {ctype(str(a.dtype))} {name}[{a.size}];\n" for _, a, name in tensors)
    results = "".join(
        f"static {ctype(spec.dtype)} got_{names[f'output.{spec.name}']}[{golden[f'output.{spec.name}'].size}];\n"
        for spec in signature.outputs
    )
    inputs = [names[f"input.{spec.name}"] for spec in signature.inputs]
    outputs = [f"got_{names[f'output.{spec.name}']}" for spec in signature.outputs]
    checks = [_check(spec, golden, names, tolerance) for spec in signature.outputs]
    if signature.state:
        results += f"static struct {p}_state before, after;\n"
    load = "".join(f"    read_values(file, {name}, sizeof {name});\n" for _, _, name in tensors)
    set_state, got_state = "", ""
    states = source.state_names()
    for spec, name in zip(signature.state, states, strict=True):
        set_state += f"    memcpy(before.{name}, {names[f'state.{spec.name}']}, sizeof before.{name});\n"
        got_state += _numbers(
            f"(const {ctype(spec.dtype)} *)after.{name}",
            names[f"new_state.{spec.name}"],
            golden[f"new_state.{spec.name}"],
            spec.name,
            tolerance,
        )
    set_state += f"    check({p}_set_state(model, &before));\n" if signature.state else ""
    got_state = f"    check({p}_get_state(model, &after));\n{got_state}" if signature.state else ""
    passed = ", ".join((*inputs, *outputs))
    whole = f"{p}_run(model, STEPS, {passed})" if source.timed else f"{p}_step(model, {passed})"
    runs = f'    way = "{"all steps at once" if source.timed else "the whole"}";\n{set_state}    check({whole});\n    compare();\n'
    stepwise = (
        source.timed
        and signature.streaming
        and all(source.outer(s) == 1 for s in (*signature.inputs, *signature.outputs))
    )
    if stepwise:
        moved = [
            f"{name} + t * {source.inner(spec)}" if "T" in spec.shape else name
            for spec, name in zip((*signature.inputs, *signature.outputs), (*inputs, *outputs), strict=True)
        ]
        runs += (
            f'    way = "step by step";\n{set_state}    for (int t = 0; t < STEPS; t++)\n'
            f"        check({p}_step(model, {', '.join(moved)}));\n    compare();\n"
        )
    used = "".join(checks) + got_state
    helpers = "".join(text for word, text in _HELPERS.items() if f"{word}(" in used)
    return fill(
        "main.c",
        **source.words(),
        golden_steps=steps,
        tolerance=repr(float(tolerance)),
        arrays=arrays + results,
        comparisons=f"{helpers}static const char *way;\n\nstatic void compare(void)\n{{\n{used}}}\n",
        load=load,
        runs=runs,
        **loaded(source),
    )


def measure_file(source: Source) -> str:
    """The text of measure.c: the model on zeros, for its largest number of steps at once."""
    p, signature, program = source.prefix, source.signature, source.program
    steps, taken = program.steps, {"model", "memory", "work", "used", "nothing"}
    sizes = []
    for spec in (*signature.inputs, *signature.outputs):
        dims = [program.batch if d == "N" else steps if d == "T" else d for d in spec.shape]
        sizes.append((ctype(spec.dtype), identifier(spec.name, taken), math.prod(dims)))
    arrays = "".join(f"static {kind} {name}[{size}];\n" for kind, name, size in sizes)
    passed = ", ".join(name for _, name, _ in sizes)
    call = f"{p}_run(model, STEPS, {passed})" if source.timed else f"{p}_step(model, {passed})"
    return fill(
        "measure.c", **source.words(), measured_steps=steps, arrays=arrays, call=call, **loaded(source, ".")
    )


def loaded(source: Source, folder: str | None = None) -> dict[str, str]:
    """The words of a program that brings the weights: how it reads them, and passes them on."""
    if source.embedded:
        return {"weights_load": "", "weights_arguments": "", "weights_too": ""}
    upper = source.prefix.upper()
    opened = 'fopen("weights.bin", "rb")' if folder else 'open_file(folder, "weights.bin")'
    failure = '        fprintf(stderr, "no weights.bin here\\n");\n        return 2;\n'
    checked = "!file || " if folder else ""
    return {
        "weights_load": (
            "    /* read; where there is mmap, map it */\n"
            f"    static union {{ double align[8]; unsigned char bytes[64 + {upper}_WEIGHTS_SIZE]; }} room;\n"
            "    unsigned char *weights = room.bytes + (64 - (uintptr_t)room.bytes % 64) % 64;\n"
            + (f"    FILE *file = {opened};\n" if folder else f"    file = {opened};\n")
            + f"    if ({checked}fread(weights, 1, {upper}_WEIGHTS_SIZE, file) != {upper}_WEIGHTS_SIZE) {{\n{failure}    }}\n"
            "    fclose(file);\n"
        ),
        "weights_arguments": f", weights, {upper}_WEIGHTS_SIZE",
        "weights_too": " and weights.bin",
    }


def _tensors(source: Source, golden: Arrays) -> list[tuple[str, np.ndarray, str]]:
    """(key, array, C name) of what golden.bin holds, in order."""
    keys = [f"input.{s.name}" for s in source.signature.inputs] + [
        f"state.{s.name}" for s in source.signature.state
    ]
    keys += [f"output.{s.name}" for s in source.signature.outputs]
    keys += [f"new_state.{s.name}" for s in source.signature.state]
    keys += [key for key in golden if key.startswith("scores.")]
    taken: set[str] = {"model", "memory", "failed", "way", "before", "after"}
    return [(key, golden[key], identifier(f"golden_{key}", taken)) for key in keys]


def _steps(source: Source, golden: Arrays) -> int:
    for spec in source.signature.inputs:
        if "T" in spec.shape:
            return int(golden[f"input.{spec.name}"].shape[spec.shape.index("T")])
    return 1


def _check(spec: Any, golden: Arrays, names: dict[str, str], tolerance: float) -> str:
    wanted, name = golden[f"output.{spec.name}"], names[f"output.{spec.name}"]
    scores = golden.get(f"scores.{spec.name}")
    if scores is None:
        return _numbers(f"got_{name}", name, wanted, spec.name, tolerance)
    width = scores.shape[-1]
    rows = scores.size // width
    largest = max(1.0, float(np.max(np.abs(scores), initial=0.0)))
    return (
        f'    report("{spec.name}", way, by_scores(got_{name}, {name}, {names[f"scores.{spec.name}"]}, '
        f"{rows}, {wanted.size // rows}, {width}), {2 * tolerance * largest!r});\n"
    )


def _numbers(got: str, wanted: str, values: np.ndarray, name: str, tolerance: float) -> str:
    exact = values.dtype.kind not in "fc"
    allowed = 0.0 if exact else tolerance * max(1.0, float(np.max(np.abs(values), initial=0.0)))
    helper = "difference" if str(values.dtype) == "float32" else "difference_" + ctype(str(values.dtype))
    return f'    report("{name}", way, {helper}({got}, {wanted}, {values.size}), {allowed!r});\n'


def _difference(kind: str, word: str) -> str:
    return (
        f"static double {word}(const {kind} *got, const {kind} *wanted, size_t count)\n{{\n"
        "    double worst = 0;\n\n    for (size_t i = 0; i < count; i++) {\n"
        "        double error = fabs((double)got[i] - (double)wanted[i]);\n\n"
        "        if (error != error) return error; /* a NaN */\n        if (error > worst) worst = error;\n"
        "    }\n    return worst;\n}\n\n"
    )


_HELPERS = {
    "difference": _difference("float", "difference"),
    **{
        f"difference_{kind}": _difference(kind, f"difference_{kind}")
        for kind in (
            "double",
            "int8_t",
            "int16_t",
            "int32_t",
            "int64_t",
            "uint8_t",
            "uint16_t",
            "uint32_t",
            "uint64_t",
        )
    },
    "by_scores": (
        "/* Indices are compared by the scores that they were chosen by: of two as good either may be taken. */\n"
        "static double by_scores(const int64_t *got, const int64_t *wanted, const float *scores, size_t rows,\n"
        "                        size_t picked, size_t width)\n{\n    double worst = 0;\n\n"
        "    for (size_t i = 0; i < rows * picked; i++) {\n"
        "        const float *row = scores + i / picked * width;\n        double error;\n\n"
        "        if (got[i] < 0 || (size_t)got[i] >= width) return HUGE_VAL;\n"
        "        error = fabs((double)row[got[i]] - (double)row[wanted[i]]);\n"
        "        if (!(error <= worst)) worst = error;\n    }\n    return worst;\n}\n\n"
    ),
}
