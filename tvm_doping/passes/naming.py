"""The names of what passes make: layers by their module's path, variables by what they were made for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tvm_doping._tvm import handle, relax


def layer_name(names: Mapping[int, str], constants: list[Any], taken: Counter[str], default: str) -> str:
    """The path of the module whose parameter is the last of the constants that has a name; counted, where it is taken.

    The last: of a tied output layer that is its bias, where its weight has the name of the embedding.
    """
    named = [names[handle(c.value)] for c in constants if handle(c.value) in names]
    path = re.split(r"\.?(?:parametrizations\.|[^.]*$)", named[-1])[0] if named else default
    path = path or default
    taken[path] += 1
    return path if taken[path] == 1 else f"{path}.call{taken[path]}"


def bound(name: str, expr: Any) -> Any:
    """A variable of the expression's type, to bind it to."""
    return relax.DataflowVar(name, relax.BlockBuilder().normalize(expr).ty)
