"""The log of a tuning job: a line of JSON a candidate, written before the next one is asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tvm_doping.errors import TuningError
from tvm_doping.places import check_writable

NAME = "log.jsonl"


class Log:
    """<folder>/log.jsonl. With `resume` it goes on with what is there, else there must be nothing.

    A line that a killed job left unfinished is dropped. TuningError for a folder that has a log, or cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], resume: bool) -> None:
        self.folder, self.path = Path(folder), Path(folder) / NAME
        check_writable(self.folder, TuningError)
        if self.path.exists() and not resume:
            raise TuningError(
                str(self.path),
                "no log of a job before",
                "one",
                "Go on with it (--resume), delete it, or name another folder (--log).",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lines: list[dict[str, Any]] = []
        whole = self.path.read_bytes() if self.path.exists() else b""
        kept = whole[: whole.rfind(b"\n") + 1]
        for number, line in enumerate(kept.splitlines(), 1):
            try:
                self.lines.append(dict(json.loads(line)))
            except ValueError as error:
                raise TuningError(
                    f"{self.path}, line {number}", "a line of JSON", str(error), "Delete the line."
                ) from error
        self._file = open(self.path, "ab")  # noqa: SIM115 (closed by close())
        self._file.truncate(len(kept))

    def of(self, task: str) -> list[dict[str, Any]]:
        """The lines of a task."""
        return [line for line in self.lines if line.get("task") == task]

    def add(self, line: dict[str, Any]) -> None:
        """One more line, on the disk when this returns."""
        self.lines.append(line)
        self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
