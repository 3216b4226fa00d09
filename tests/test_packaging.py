"""The wheel, built from the sdist, carries every module and data file and works elsewhere."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build")

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tvm_doping"
NOT_SOURCE = shutil.ignore_patterns(
    ".git",
    ".venv",
    ".*_cache",
    "__pycache__",
    "*.egg-info",
    "build",
    "dist",
    ".hypothesis",
    "runs",
    "*output",
)

pytestmark = pytest.mark.slow

IMPORT_ALL = """
import importlib, json, pkgutil, sys
import tvm_doping
found = pkgutil.walk_packages(tvm_doping.__path__, "tvm_doping.")
names = [module.name for module in found if not module.name.endswith("__main__")]
files = {name: importlib.import_module(name).__file__ for name in names}
print(json.dumps({"tvm_doping": tvm_doping.__file__, **files}))
"""


def run(*command: str, cwd: Path, **env: str) -> str:
    """Standard output of a command that must succeed; its environment lacks PYTHONPATH unless given."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | env
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=NOT_SOURCE)
    run(
        sys.executable,
        "-m",
        "build",
        "--sdist",
        "--no-isolation",
        "--outdir",
        str(folder),
        "source",
        cwd=folder,
    )
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = (path for path in folder.iterdir() if path.is_dir())
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(source),
        cwd=folder,
    )
    (built,) = folder.glob("*.whl")
    return built


def shipped() -> set[str]:
    """Every file of the package that is not made by running it."""
    paths = (path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(ROOT)) for path in paths if not path.name.startswith(".")}


def test_the_wheel_carries_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == shipped()


def test_the_sdist_carries_what_is_needed_to_build_and_test(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    assert (
        shipped() | tests | {"pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt"} <= names
    )


def test_an_installed_wheel_imports_every_module_elsewhere(wheel: Path, tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index")
    run(*pip, "--target", str(place), str(wheel), cwd=elsewhere)
    files = json.loads(
        run(sys.executable, "-c", IMPORT_ALL, cwd=elsewhere, PYTHONPATH=str(place)).splitlines()[-1]
    )
    assert all(Path(file).is_relative_to(place) for file in files.values())
    sources = {file for file in shipped() if file.endswith(".py") and not file.endswith("__main__.py")}
    assert {str(Path(file).relative_to(place)) for file in files.values()} == sources
    command = place / "bin" / "tvm-doping"
    assert "Usage" in run(sys.executable, str(command), "--help", cwd=elsewhere, PYTHONPATH=str(place))
    assert list((place).glob("tvm_doping-*.dist-info/licenses/LICENSE"))


@pytest.mark.parametrize("name", ["models", "schedules"])
def test_the_links_of_the_root_point_into_the_package(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert os.readlink(link) == f"tvm_doping/{name}"
    assert (link / "__init__.py").is_file()


def test_what_is_pinned_agrees_with_what_is_required() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pairs}
    extras = project["optional-dependencies"].values()
    for text in itertools.chain(project["dependencies"], *extras):
        requirement = Requirement(text)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), text
