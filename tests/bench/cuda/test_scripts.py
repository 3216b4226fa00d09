"""measure.sh with a stand-in for Python: what it sets up, what it says, and that nothing half-written stays."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "examples" / "cuda" / "measure.sh"
# Answers as Python 3.12 without NumPy does; "pip install" begins the folder named after --target.
PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) exit ${OLD:-0} ;;
  "-m pip --version") exit ${NO_PIP:-0} ;;
  *"import numpy"*) exit 1 ;;
  "-m pip install"*)
    for word; do [ "${before:-}" = --target ] && mkdir -p "$word" && echo "$*" > "$word/installed"; before=$word; done
    exit ${FAILS:-0} ;;
  *) echo "$PYTHONPATH: $*" ;;
esac
"""


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A kit of two wheels, one of them in pieces."""
    folder = tmp_path / "kit"
    (folder / "wheels").mkdir(parents=True)
    (folder / "wheels" / "numpy-2.0.whl").write_text("numpy")
    for end, text in (("aa", "first "), ("ab", "second")):
        (folder / "wheels" / f"tvm.whl.part-{end}").write_text(text)
    shutil.copy(SCRIPT, folder)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return folder


def run(kit: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    given = {"PATH": os.environ["PATH"], "PYTHON": str(kit.parent / "python"), **env}
    command = ["sh", str(kit / SCRIPT.name), *arguments]
    return subprocess.run(command, env=given, capture_output=True, text=True, check=False)


def test_it_joins_the_pieces_installs_the_wheels_once_and_measures(kit: Path) -> None:
    for _ in range(2):
        done = run(kit, "out", "--quick", "--tune", "0")
        assert done.returncode == 0, done.stderr
        wanted = f"{kit}/site: -m tvm_doping.bench.cuda measure {kit} --out out --quick --tune 0\n"
        assert done.stdout == wanted
        assert (kit / "wheels" / "tvm.whl").read_text() == "first second"
        installed = (kit / "site" / "installed").read_text()
        assert (
            "numpy-2.0.whl" in installed
            and f"{kit}/wheels/tvm.whl" in installed
            and ".part-" not in installed
        )
        (kit / "wheels" / "numpy-2.0.whl").unlink(missing_ok=True)  # the second run installs nothing


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        ([], {}, "measure.sh OUT"),
        (["--quick"], {}, "measure.sh OUT"),
        (["out"], {"OLD": "1"}, "needs Python 3.12"),
        (["out"], {"NO_PIP": "1"}, "needs pip"),
        (["out"], {"FAILS": "1"}, ""),
    ],
)
def test_what_is_missing_is_told_and_nothing_half_written_stays(
    kit: Path, arguments: list[str], env: dict[str, str], said: str
) -> None:
    done = run(kit, *arguments, **env)
    assert done.returncode == 2 and said in done.stderr and not done.stdout
    assert not [path for path in kit.rglob("*") if path.name.startswith("site") or path.suffix == ".new"]
    (kit / "site.new").mkdir()
    (kit / "site.new" / "of an earlier try").touch()
    assert run(kit, "out").returncode == 0 and not (kit / "site" / "of an earlier try").exists()
