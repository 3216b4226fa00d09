"""How C spells it: types, names that are free, long calls in lines."""

from __future__ import annotations

import re

from tvm_doping.errors import InvalidInput

_TYPES = {
    "float32": "float",
    "float64": "double",
    "float16": "uint16_t",
    "bfloat16": "uint16_t",
    "bool": "uint8_t",
}
# C's and C++'s words, and those of the functions that parameters stand beside.
RESERVED = frozenset(
    re.findall(
        r"\w+",
        "auto break case char const continue default do double else enum extern float for goto if inline int long register "
        "restrict return short signed sizeof static struct switch typedef union unsigned void volatile while main class new "
        "delete this model memory size weights weights_size steps state at T w s a i",
    )
)


def ctype(dtype: str) -> str:
    """C's type of a tensor's values; half-precision numbers are their bits."""
    return _TYPES.get(dtype, f"{dtype}_t")


def identifier(name: str, taken: set[str]) -> str:
    """A C identifier like the name that is not taken yet; it is then."""
    base = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "value"
    base = base if base[0].isalpha() else f"x{base}"
    found = next(n for n in (base, *(f"{base}_{i}" for i in range(2, 10_000))) if n not in taken)
    taken.add(found)
    return found


def check_prefix(prefix: str) -> str:
    """The prefix of all names; InvalidInput for what is no identifier in small letters."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,40}", prefix) or prefix in RESERVED:
        raise InvalidInput(
            "prefix",
            "a C identifier in small letters",
            repr(prefix),
            "For example lm_small, which gives lm_small_step().",
        )
    return prefix


def wrapped(begin: str, parts: list[str], end: str) -> str:
    """A call or declaration in lines of at most 100 characters."""
    lines, line = [], begin
    for i, part in enumerate(parts):
        piece = part + (end if i == len(parts) - 1 else ",")
        if len(line) + 1 + len(piece) > 100 and line.strip():
            lines.append(line.rstrip())
            line = " " * (len(begin) - len(begin.lstrip()) + 4)
        line += piece if line.endswith("(") or not line.strip() else f" {piece}"
    return "\n".join([*lines, line])
