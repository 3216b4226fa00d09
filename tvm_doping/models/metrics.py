"""metrics.jsonl: one JSON object a line, appended while training."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"


class MetricsLog:
    """The metrics of a run folder; reopened after a kill, it drops a torn line and those after `step`."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.path = folder / FILE
        kept = [row for row in read_metrics(folder) if row.get("step", 0) <= step] if step else []
        partial = self.path.with_name(f".{FILE}.{os.getpid()}")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(partial, self.path)

    def write(self, event: str, **values: Any) -> None:
        """Append {"event": event, ...}; NaN and infinity become null."""
        row = {"event": event} | {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run folder's metrics, without what a kill tore; none if there is no such file."""
    path, rows = Path(folder) / FILE, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
