"""JSON from files that anybody may have written: what Python's reader lets pass or chokes on is an error like any other."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tvm_doping.errors import DopingError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
LARGEST = 256 * 2**20  # bytes: a vocabulary of millions; what is larger would only fill the memory


def read_json(path: Path, refuse: Callable[[str, str], DopingError], *, largest: int = LARGEST) -> Any:
    """The value in the file. refuse(needs, got): the error to raise, for a file that is

    no regular one (reading a pipe would wait for ever), larger than `largest` bytes, no UTF-8, no JSON (NaN and Infinity are
    none), nested deeper than Python's stack, or that names a key twice: readers differ in which of two they take;
    nor a half of a UTF-16 pair in a text, which nothing can print.
    FileNotFoundError where there is none.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise refuse("a file of JSON", "no regular file")
            if status.st_size > largest:
                raise refuse(f"at most {largest} bytes", f"{status.st_size} bytes")
            return parse_json(file.read(largest).decode("utf-8"))
    except FileNotFoundError:
        raise
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, DopingError):
            raise
        raise refuse("a complete JSON document", str(error)[:200] or type(error).__name__) from error


def parse_json(text: str) -> Any:
    """The value of the text. ValueError or RecursionError for what `read_json` refuses."""
    value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
    if _SURROGATE.search(text):  # of a pair, as it should be, or alone
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} twice in one object")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text}, which JSON does not have")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]}, larger than any number")
    return value
