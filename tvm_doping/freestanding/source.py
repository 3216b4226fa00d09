"""The text of the C: a header with the model's functions, and the source that calls its kernels in order."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from importlib import resources
from string import Template
from typing import Any

from tvm_doping.freestanding.calls import Program, Value, itemsize
from tvm_doping.freestanding.kernels import Kernels
from tvm_doping.freestanding.layout import Layout
from tvm_doping.freestanding.spelling import RESERVED, ctype, identifier, wrapped
from tvm_doping.frontend import Signature
from tvm_doping.targets import Target

# Names of CPU features for __builtin_cpu_supports: those that tell the levels of x86-64 apart and that GCC and Clang both know.
_SUPPORTS = {
    "sse4_2": "sse4.2",
    "avx2": "avx2",
    "fma": "fma",
    "bmi2": "bmi2",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the texts are made of; embedded: whether the weights are part of the program, else the caller brings them."""

    prefix: str
    title: str
    version: str
    target: Target
    signature: Signature
    program: Program
    kernels: Kernels
    layout: Layout
    embedded: bool
    weights: bytes

    def header(self) -> str:
        """The text of PREFIX.h."""
        return fill("model.h", **self.words())

    def code(self) -> str:
        """The text of PREFIX.c."""
        return fill("model.c", **self.words() | {"functions": self._definitions()})

    @property
    def timed(self) -> bool:
        """Whether there is a time axis."""
        return self.signature.time_axis is not None

    def weights_file(self) -> bytes:
        """weights.bin: the weights; before them, where the caller brings them, 64 bytes with their sha256."""
        return self.weights if self.embedded else self._weights_id().ljust(64, b"\0") + self.weights

    def _weights_id(self) -> bytes:
        return hashlib.sha256(self.weights).digest()

    @property
    def strided(self) -> bool:
        """Whether the time steps of a piece lie apart in some tensor."""
        return any(self.outer(spec) > 1 for spec in (*self.signature.inputs, *self.signature.outputs))

    def words(self) -> dict[str, Any]:
        p, upper, layout = self.prefix, self.prefix.upper(), self.layout
        pieces = self.timed and not self.signature.streaming
        steps = "that run at once" + ("" if pieces else f"; {p}_run() takes any number, in pieces")
        by_caller = not self.embedded
        return {
            "prefix": p,
            "PREFIX": upper,
            "title": self.title,
            "version": self.version,
            "target": self.target.name,
            "features": " ".join(self.target.features),
            "summary": self._summary(),
            "batch": self.program.batch,
            "max_steps": f"#define {upper}_MAX_STEPS {self.program.steps} /* time steps {steps} */\n"
            if self.timed
            else "",
            "too_many": f", or more than {upper}_MAX_STEPS" if pieces else "",
            "memory": layout.memory,
            "state_bytes": layout.state_bytes,
            "weight_bytes": layout.weight_bytes,
            "weights_size": f"#define {upper}_WEIGHTS_SIZE {64 + layout.weight_bytes} /* bytes of weights.bin */\n"
            if by_caller
            else "",
            "weights_parameters": ", const void *weights, size_t weights_size" if by_caller else "",
            "weights_null": " || !weights" if by_caller else "",
            "weights_start": "(const unsigned char *)weights + 64" if by_caller else f"{p}_weights",
            "weights_check": self._weights_check() if by_caller else "",
            "weights_source": self._weights_source(),
            "state_struct": self._state_struct(),
            "functions": self._prototypes(),
            "declarations": self._declarations(),
            "copy_function": _COPY if self.strided else "",
            "advance": self._advance(),
            "check_cpu": self._check_cpu(),
        }

    def _summary(self) -> str:
        def described(specs: Any) -> str:
            return ", ".join(
                f"{spec.name} {spec.dtype} ({', '.join(map(str, spec.shape))})" for spec in specs
            )

        return f"{described(self.signature.inputs)} -> {described(self.signature.outputs)}"

    def _names(self) -> tuple[list[str], list[str], list[str]]:
        """C's names of inputs, states and outputs."""
        taken: set[str] = set(RESERVED)
        inputs = [identifier(spec.name, taken) for spec in self.signature.inputs]
        outputs = [identifier(spec.name, taken) for spec in self.signature.outputs]
        states: set[str] = set(RESERVED) - {"state", "model", "memory", "size", "weights", "steps", "at"}
        return inputs, [identifier(spec.name, states) for spec in self.signature.state], outputs

    def parameter_names(self) -> list[str]:
        """The names of inputs and outputs, in order."""
        inputs, _, outputs = self._names()
        return [*inputs, *outputs]

    def state_names(self) -> list[str]:
        """The members of the state's struct, in order."""
        return self._names()[1]

    def _parameters(self) -> str:
        inputs, _, outputs = self._names()
        given = [f"const {ctype(t.dtype)} *{n}" for t, n in zip(self.signature.inputs, inputs, strict=True)]
        given += [f"{ctype(t.dtype)} *{n}" for t, n in zip(self.signature.outputs, outputs, strict=True)]
        return ", ".join(given)

    def _dims(self, spec: Any) -> list[str]:
        """The shape, with the batch in place of N."""
        return [str(self.program.batch if dim == "N" else dim) for dim in spec.shape]

    def _count(self, dims: Any) -> int:
        return math.prod(self.program.batch if dim == "N" else int(dim) for dim in dims)

    def outer(self, spec: Any) -> int:
        """How many blocks of consecutive time steps a tensor has: 1 where time is its first axis, or it has none."""
        return self._count(spec.shape[: spec.shape.index("T")]) if "T" in spec.shape else 1

    def inner(self, spec: Any) -> int:
        """Values of a time step in one of these blocks (of all of it, without time)."""
        return self._count(spec.shape[spec.shape.index("T") + 1 :] if "T" in spec.shape else spec.shape)

    def _prototypes(self) -> str:
        p, texts = self.prefix, []
        shapes = "; ".join(
            f"{name} ({', '.join(self._dims(spec))})"
            for names, specs in (
                (self._names()[0], self.signature.inputs),
                (self._names()[2], self.signature.outputs),
            )
            for name, spec in zip(names, specs, strict=True)
        )
        if self.signature.streaming or not self.timed:
            which = "One time step: T is 1 in " if self.timed else "Run the model: "
            texts.append(f"/* {which}{shapes}. */\nint {p}_step(struct {p} *model, {self._parameters()});\n")
        if self.timed:
            texts.append(
                f"/* T = `steps` time steps: {shapes}. The state goes on from call to call. */\n"
                f"int {p}_run(struct {p} *model, size_t steps, {self._parameters()});\n"
            )
        if self.signature.state:
            texts.append(
                f"/* Copy the state out, or another in. */\n"
                f"int {p}_get_state(const struct {p} *model, struct {p}_state *state);\n"
                f"int {p}_set_state(struct {p} *model, const struct {p}_state *state);\n"
            )
        return "\n" + "\n".join(texts)

    def _state_struct(self) -> str:
        if not self.signature.state:
            return ""
        fields = "".join(
            f"    {ctype(spec.dtype)} {name}{''.join(f'[{dim}]' for dim in self._dims(spec))};\n"
            for spec, name in zip(self.signature.state, self._names()[1], strict=True)
        )
        return (
            f"\n/* The state that goes on from step to step. */\nstruct {self.prefix}_state {{\n{fields}}};\n"
        )

    def _declarations(self) -> str:
        texts, done = [], set()
        for call in self.program.calls:
            if call.kernel in done:
                continue
            done.add(call.kernel)
            reads = [f"const void *in{i}" for i, _ in enumerate(call.reads)]
            parts = [*reads, *(f"void *out{i}" for i, _ in enumerate(call.writes))]
            parts += ["int64_t T"] if self.kernels.timed[call.kernel] else []
            parts += ["void *workspace"] if self.kernels.workspace[call.kernel] else []
            texts.append(wrapped(f"void {self.prefix}_kernel_{call.kernel}(", parts, ");"))
        return "\n".join(texts) + "\n"

    def _weights_source(self) -> str:
        if self.embedded:
            return f"extern const unsigned char {self.prefix}_weights[]; /* weights.S */\n\n"
        digits = ", ".join(f"0x{byte:02x}" for byte in self._weights_id())
        return (
            "/* The first bytes of weights.bin: the sha256 of the rest. */\n"
            f"static const unsigned char WEIGHTS_ID[32] = {{\n    {digits}}};\n\n{fill('digest.c')}"
        )

    def _weights_check(self) -> str:
        upper = self.prefix.upper()
        return (
            f"    if (weights_size != {upper}_WEIGHTS_SIZE || (uintptr_t)weights % ALIGNMENT ||\n"
            f"        memcmp(weights, WEIGHTS_ID, sizeof WEIGHTS_ID) ||\n"
            f"        !has_digest((const unsigned char *)weights + 64, weights_size - 64, WEIGHTS_ID))\n"
            f"        return {upper}_ERROR_WEIGHTS;\n"
        )

    def _check_cpu(self) -> str:
        if self.target.arch != "x86_64":
            return ""
        names = [word for feature, word in _SUPPORTS.items() if self.target.has(feature)]
        tests = " ||\n        ".join(f'!__builtin_cpu_supports("{word}")' for word in names)
        return (
            "#if defined(__x86_64__) && defined(__GNUC__)\n"
            f"    if ({tests})\n        return {self.prefix.upper()}_ERROR_CPU;\n#endif\n"
        )

    def _advance(self) -> str:
        """The function that runs up to MAX_STEPS steps."""
        inputs, _, outputs = self._names()
        lines = [
            self._copied(spec, name, value, into=True)
            for spec, name, value in zip(self.signature.inputs, inputs, self.program.inputs, strict=True)
        ]
        for number, call in enumerate(self.program.calls):
            lines.append(self._called(number, call))
        lines += [
            self._copied(spec, name, value, into=False)
            for spec, name, value in zip(self.signature.outputs, outputs, self.program.outputs, strict=True)
        ]
        lines += [
            f"    memcpy({self.layout.place(old)}, {self.layout.place(new)}, {old.bytes}); /* {old.name} */\n"
            for old, new in zip(self.program.state, self.program.new_state, strict=True)
            if new is not old
        ]
        body = "".join(lines)
        bases = {
            "w": "    const unsigned char *const w = self->weights;\n",
            "s": "    unsigned char *const s = self->state;\n",
            "a": "    unsigned char *const a = self->arena;\n",
        }
        used = "".join(text for base, text in bases.items() if re.search(rf"[ (]{base}( \+|[,)])", body))
        time = f"{'size_t steps, ' if self.strided else ''}size_t at, size_t T, " if self.timed else ""
        what = "T time steps from step `at` on" if self.timed else "The model"
        return (
            f"/* {what}: inputs into the arena, the kernels, outputs out of it, and the new state. */\n"
            f"static void advance(struct {self.prefix} *self, {time}{self._parameters()})\n{{\n{used}\n{body}}}\n"
        )

    def _copied(self, spec: Any, name: str, value: Value, *, into: bool) -> str:
        place, outer, inner = self.layout.place(value), self.outer(spec), self.inner(spec)
        size = itemsize(spec.dtype)
        if "T" not in spec.shape:
            ends = (place, name) if into else (name, place)
            return f"    memcpy({ends[0]}, {ends[1]}, {inner * size});\n"
        own, bytes_ = f"{name} + at * {inner}", f"T * {inner * size}"
        if outer == 1:
            ends = (place, own) if into else (own, place)
            return f"    memcpy({ends[0]}, {ends[1]}, {bytes_});\n"
        stride = f"steps * {inner * size}"
        ends = (f"{place}, {bytes_}", f"{own}, {stride}")
        first, second = ends if into else ends[::-1]
        return f"    copy({first}, {second}, {outer}, {bytes_});\n"

    def _called(self, number: int, call: Any) -> str:
        def described(values: Any) -> str:
            return ", ".join(
                f"{v.name} ({', '.join(map(str, v.shape))})" for v in values if v.kind != "weight"
            )

        parts = [self.layout.place(value) for value in (*call.reads, *call.writes)]
        parts += ["(int64_t)T"] if self.kernels.timed[call.kernel] else []
        parts += [self.layout.workspace_place(number)] if number in self.layout.workspace else []
        note = f"    /* {self.program.titles[call.kernel]}: {described(call.reads)} -> {described(call.writes)} */\n"
        return note + wrapped(f"    {self.prefix}_kernel_{call.kernel}(", parts, ");") + "\n"

    def _definitions(self) -> str:
        p, upper = self.prefix, self.prefix.upper()
        inputs, states, outputs = self._names()
        pointers = "".join(f" || !{name}" for name in (*inputs, *outputs))
        passed, texts = ", ".join((*inputs, *outputs)), []
        checks = "".join(
            self._range(spec, name) for spec, name in zip(self.signature.inputs, inputs, strict=True)
        )
        if self.timed:
            bound = "" if self.signature.streaming else f" || steps > {upper}_MAX_STEPS"
            texts.append(
                f"int {p}_run(struct {p} *model, size_t steps, {self._parameters()})\n{{\n    size_t at;\n\n"
                f"    if (!model{pointers}) return {upper}_ERROR_NULL;\n"
                f"    if (!steps{bound}) return {upper}_ERROR_STEPS;\n{checks}"
                f"    for (at = 0; at < steps; at += {upper}_MAX_STEPS)\n"
                f"        advance(model, {'steps, ' if self.strided else ''}at, "
                f"steps - at < {upper}_MAX_STEPS ? steps - at : {upper}_MAX_STEPS,\n"
                f"                {passed});\n    return {upper}_OK;\n}}\n"
            )
            if self.signature.streaming:
                texts.append(
                    f"int {p}_step(struct {p} *model, {self._parameters()})\n{{\n"
                    f"    return {p}_run(model, 1, {passed});\n}}\n"
                )
        else:
            texts.append(
                f"int {p}_step(struct {p} *model, {self._parameters()})\n{{\n"
                f"    if (!model{pointers}) return {upper}_ERROR_NULL;\n{checks}"
                f"    advance(model, {passed});\n    return {upper}_OK;\n}}\n"
            )
        if states:
            for word, parameters in (
                ("get", f"const struct {p} *model, struct {p}_state *state"),
                ("set", f"struct {p} *model, const struct {p}_state *state"),
            ):
                copies = ""
                for name, value in zip(states, self.program.state, strict=True):
                    place = f"model->state + {self.layout.state[value.name]}"
                    ends = (f"state->{name}", place) if word == "get" else (place, f"state->{name}")
                    copies += f"    memcpy({ends[0]}, {ends[1]}, sizeof state->{name});\n"
                texts.append(
                    f"int {p}_{word}_state({parameters})\n{{\n"
                    f"    if (!model || !state) return {upper}_ERROR_NULL;\n{copies}    return {upper}_OK;\n}}\n"
                )
        return "\n" + "\n".join(texts)

    def _range(self, spec: Any, name: str) -> str:
        if spec.below is None:
            return ""
        count = (
            f"steps * {self.outer(spec) * self.inner(spec)}" if "T" in spec.shape else f"{self.inner(spec)}"
        )
        low = "" if spec.dtype.startswith("u") else f"{name}[i] < 0 || "
        return (
            f"    for (size_t i = 0; i < {count}; i++)\n"
            f"        if ({low}{name}[i] >= {spec.below}) return {self.prefix.upper()}_ERROR_INPUT;\n"
        )


_COPY = """/* Copy `blocks` runs of `bytes`, which lie `to_stride` and `from_stride` bytes apart. */
static void copy(void *to, size_t to_stride, const void *from, size_t from_stride, size_t blocks, size_t bytes)
{
    size_t i;

    for (i = 0; i < blocks; i++)
        memcpy((unsigned char *)to + i * to_stride, (const unsigned char *)from + i * from_stride, bytes);
}

"""


def fill(template: str, **words: Any) -> str:
    """A template of this package with its words filled in."""
    text = resources.files(__package__).joinpath("templates", template).read_text(encoding="utf-8")
    return Template(text).substitute(words)
