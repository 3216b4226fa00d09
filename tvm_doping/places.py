"""Whether results can be written to a folder, asked before the work that makes them."""

from __future__ import annotations

import tempfile
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
