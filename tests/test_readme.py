"""The rows of the README's tables of speed are what the samples in results/ say."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"AVX2": "zen3", "AVX-512": "zen5"}  # a section of the README: the machine whose results it shows

if not (ROOT / "results").is_dir():  # a source distribution has none
    pytest.skip("no results/ here", allow_module_level=True)


def rows(section: str) -> list[dict[str, str]]:
    """The rows of a section's tables that have a time, by their columns' names."""
    (text,) = re.findall(
        rf"^### {section}\n(.*?)^##", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )
    found: list[dict[str, str]] = []
    heads: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if "us a call" in cells:
            heads = cells
        elif heads and len(cells) == len(heads) and cells[heads.index("us a call")][:1].isdigit():
            found.append(dict(zip(heads, cells, strict=True)))
        elif not cells:
            heads = []
    return found


def measured(machine: str) -> list[dict[str, Any]]:
    """Of each cell: T, and by the README's columns our time and the ratios of the others to it."""
    found = []
    for path in sorted((ROOT / "results" / machine).glob("*/results.json")):
        for cell in json.loads(path.read_text())["cells"]:
            us = {engine["name"]: engine["us"]["median"] for engine in cell["engines"]}
            ours = us["tvm_doping"]
            times = {
                "library": min(
                    (us[name] for name in ("onnxruntime", "openvino") if name in us), default=math.nan
                ),
                "int8": us.get("onnxruntime-int8", math.nan),
                "own dense": us.get("tvm-dense", math.nan),
            }
            ratios = {name: time / ours for name, time in times.items()}
            found.append({"of": path.parent.name, "T": cell["steps"], "us a call": ours, **ratios})
    return found


def says(text: str, value: float) -> bool:
    """Whether a number of the README is that value, rounded to the digits shown; nothing is said where it is left out."""
    number = text.removesuffix("x").replace(",", "")
    if not number:
        return True
    decimals = len(number.partition(".")[2])
    return abs(float(number) - value) <= 0.5001 * 10.0**-decimals


@pytest.mark.parametrize("section", FOLDERS)
def test_every_row_is_a_cell_of_the_results(section: str) -> None:
    cells, said = measured(FOLDERS[section]), rows(section)
    assert len(said) >= 10
    for row in said:
        fitting = [
            cell["of"]
            for cell in cells
            if int(row["T"]) == cell["T"]
            and all(says(row[name], cell[name]) for name in ("us a call", "library", "int8", "own dense"))
        ]
        assert fitting, f"no cell of results/{FOLDERS[section]} has {row}"


def test_what_the_matrix_is_said_to_show_is_in_its_table() -> None:
    """How many cells there are, and in how many of them the libraries, int8 and the own dense build are slower."""
    text = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    claim = re.search(r"measured these (\d+) cells .*?(\d+) are faster than int8 too", text)
    assert claim is not None
    lines = (ROOT / "results" / "matrix" / "table.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    heads, cells = table[0], table[2:]
    ratio = {
        name: [float(row[heads.index(name)].split("x")[0]) for row in cells]
        for name in heads
        if "to " in name
    }
    assert len(cells) == int(claim[1]) and sum(r > 1 for r in ratio["to int8"]) == int(claim[2])
    assert min(*ratio["to best fp32"], *ratio["to own dense"]) > 1
