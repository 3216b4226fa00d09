"""Folders that results are written to: whether they can be, asked before the work that makes them, and all of them or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from tvm_doping.errors import DopingError


def check_writable(folder: Path, error: type[DopingError], named: str = "") -> None:
    """Raise `error` where the folder cannot be made or written in. Leaves nothing behind.

    named: how the message calls the folder.
    """
    made: list[Path] = []
    try:
        # asking for permissions is not enough: /proc grants them to root and still makes no folder
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as refusal:
        got = "a file" if folder.is_file() else str(refusal)
        raise error(
            named or str(folder), "a folder that can be written", got, "Name another folder."
        ) from refusal
    finally:
        for place in made:
            with suppress(OSError):
                place.rmdir()


def check_replaceable(folder: Path, mark: str, error: type[DopingError]) -> None:
    """Raise `error` unless the folder is new, empty, or holds the file `mark`, which says that it is one to replace."""
    if not folder.exists() or (folder.is_dir() and ((folder / mark).is_file() or not any(folder.iterdir()))):
        return
    raise error(
        str(folder),
        f"a new folder, an empty one, or one with a {mark} to replace",
        f"a folder with no {mark}" if folder.is_dir() else "a file",
        "Name another folder, or remove this one first.",
    )


def write_files(folder: Path, contents: Mapping[str, str | bytes]) -> dict[str, Path]:
    """Write files by name into the folder, each whole or not at all, beside what is there; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        fresh = folder / f".{name}.new"
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(fresh, folder / name)
    return {name: folder / name for name in contents}


def write_folder(folder: Path, write: Callable[[Path], None], error: type[DopingError]) -> None:
    """Write all of a folder or nothing: write() gets an empty one, which then takes this one's place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    fresh, old = (folder.with_name(f".{folder.name}.{word}-{mark}") for word in ("new", "old"))
    try:
        fresh.mkdir()
        write(fresh)
        if folder.exists():  # a folder that is not empty cannot be replaced in one step
            os.replace(folder, old)
        try:
            os.replace(fresh, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
    except OSError as refusal:
        raise error(
            str(folder), "a place that can be written", str(refusal), "Save to another folder."
        ) from refusal
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
