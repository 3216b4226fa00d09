"""The same input, target and versions give the same bytes, whatever the process, its hash seed and its folders are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.passes.models import plain
from tvm_doping._tvm import IRBuilder, T, tvm
from tvm_doping.kernels.stores import sort_stores
from tvm_doping.models import LanguageModel, dope

ROOT = Path(__file__).parents[2]


def make(folder: Path) -> None:
    """Bundles and C of models that use all kinds of kernels, of more than one symbol and of more threads than one."""
    import tvm_doping

    torch.manual_seed(0)
    language = LanguageModel(vocab=60, embedding=32, hidden=32, layers=2)
    dope(language, compression=6, modules=["lstm.*", "output"])
    tvm_doping.compile(language.eval(), "x86-64-v3", threads=2).save(folder / "language")
    tvm_doping.compile_c(language, "x86-64-v3").save(folder / "c")
    tvm_doping.compile(plain(bidirectional=True), "x86-64-v4", head="top_k:3", batch=8).save(
        folder / "tagger"
    )


def test_two_processes_make_the_same_bytes(tmp_path: Path) -> None:
    running = []
    for seed in ("1", "2"):
        place = tmp_path / f"process{seed}"
        (place / "tmp").mkdir(parents=True)
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "TMPDIR": str(place / "tmp"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        code = "import sys, pathlib; from tests.compiling.test_reproducible import make; make(pathlib.Path(sys.argv[1]))"
        running.append(
            subprocess.Popen([sys.executable, "-c", code, str(place / "out")], env=environment, cwd=place)
        )
    assert [process.wait() for process in running] == [0, 0]
    first, second = (tmp_path / f"process{seed}" / "out" for seed in "12")
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert len(names) == 8 + 11
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def _function(*places: int, read: int = 0) -> Any:
    with IRBuilder() as builder, T.prim_func():
        T.func_name("shapes")
        H = T.match_buffer(T.arg("h", T.handle()), (8,), "int64")
        for place in places:
            T.buffer_store(H, H[read] * place, [place])
    return builder.get()


def test_stores_are_sorted() -> None:
    tvm.ir.assert_structural_equal(sort_stores(_function(4, 2, 7)), _function(2, 4, 7))


@pytest.mark.parametrize(("places", "read"), [((4, 2), 4), ((4, 2, 4), 0)], ids=["read", "written twice"])
def test_stores_that_depend_on_each_other_stay(places: tuple[int, ...], read: int) -> None:
    function = _function(*places, read=read)
    assert sort_stores(function).same_as(function)
