"""Fixtures that every room's tests may use, and the settings all tests run under."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Laws, not timings: a slow, shared machine must not fail a test. The same examples in every run.
settings.register_profile("tvm_doping", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("tvm_doping")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real texts (`ptb/ptb.train.txt`, ...) that TVM_DOPING_DATA names; without it, skip."""
    folder = os.environ.get("TVM_DOPING_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TVM_DOPING_DATA names no folder")
    return Path(folder)


@pytest.fixture(scope="session")
def ptb(data: Path) -> Path:
    """The folder with `ptb.{train,valid,test}.txt`."""
    if not (data / "ptb" / "ptb.train.txt").is_file():
        pytest.skip(f"no ptb/ptb.train.txt under {data}")
    return data / "ptb"


@pytest.fixture(scope="session", autouse=True)
def _no_records_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What was tuned on this machine must not change what is tested."""
    os.environ["TVM_DOPING_RECORDS"] = str(tmp_path_factory.mktemp("records"))
