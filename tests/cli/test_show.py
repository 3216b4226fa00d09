"""How the verbs read settings and show numbers."""

from __future__ import annotations

import pytest

from tvm_doping.cli.show import ratio, settings, shape, size
from tvm_doping.errors import InvalidInput


def test_sizes_read_well():
    counts = (0, 830, 1024, 1331, 27 * 2**20, 5 * 2**40)
    assert [size(n) for n in counts] == ["0 B", "830 B", "1.0 KiB", "1.3 KiB", "27.0 MiB", "5120.0 GiB"]
    assert (ratio(10, 4), ratio(10, 0)) == ("2.5x", "-")
    assert (shape(("T", "N", 8)), shape(())) == ("T x N x 8", "scalar")


def test_settings_are_json_or_text():
    found = settings(["a=1", "b=[1, 2]", "c=x=y", "d=", "e=true"], "--set", "a=1")
    assert found == {"a": 1, "b": [1, 2], "c": "x=y", "d": "", "e": True}
    for bad in ("a", "=1", " =1"):
        with pytest.raises(InvalidInput, match="--set a=1"):
            settings([bad], "--set", "a=1")
