"""The log of a tuning job: a line of JSON a candidate, written before the next one is asked for."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from tvm_doping.errors import TuningError
from tvm_doping.places import check_writable

NAME = "log.jsonl"


class Log:
    """<folder>/log.jsonl. With `resume` it goes on with what is there, else there must be nothing.

    A line that a killed job left unfinished is dropped. TuningError for a folder that has a log, cannot be written, or is that of
    a job that runs.
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
        self._file = open(self.path, "ab")  # noqa: SIM115 (closed by close())
        try:
            self._file.truncate(self._read())
        except BaseException:
            self.close()
            raise

    def _read(self) -> int:
        """Take this log for this job until it ends; read its lines, and return how many bytes they are."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            needs, remedy = "no other job that writes it", "Wait for its end, or name another folder (--log)."
            raise TuningError(str(self.path), needs, "one that runs", remedy) from error
        whole = self.path.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        for number, line in enumerate(kept.splitlines(), 1):
            try:
                self.lines.append(dict(json.loads(line)))
            except ValueError as error:
                raise TuningError(
                    f"{self.path}, line {number}", "a line of JSON", str(error), "Delete the line."
                ) from error
        return len(kept)

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
