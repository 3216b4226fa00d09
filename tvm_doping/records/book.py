"""All records that a compilation may use, and the one that is nearest to a layer."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tvm_doping.errors import RecordError
from tvm_doping.records.files import AnyFile, read
from tvm_doping.records.loops import LoopFile, LoopRecord
from tvm_doping.records.model import Device, Key, Record, RecordFile, Weight

FOLDER_VARIABLE = "TVM_DOPING_RECORDS"
# Records serve layers up to this far away: a fifth more rows, columns and nonzeros in each of the two weights of a layer.
NEAR = 1.5
# Two layers this close are one task to the tuner: the layers of a model differ a little in their nonzeros.
SAME = 0.1
_FILL, _DIMS, _CACHE = 2.0, 0.2, 0.25  # what a difference in these counts, beside a doubling of a size


class Machine(Protocol):
    """What a target says of its machine."""

    @property
    def name(self) -> str: ...
    @property
    def l1(self) -> int: ...
    @property
    def l2(self) -> int: ...
    @property
    def l3(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Found:
    """A record, how far its layer and machine are away, and where it was measured."""

    record: Record
    distance: float
    device: Device


@dataclass(frozen=True)
class Book:
    """Files of records; empty, it has none."""

    files: tuple[AnyFile, ...] = ()

    @classmethod
    def open(cls, folders: Sequence[str | os.PathLike[str]]) -> Book:
        """All <device>/<operation>.json of the folders; those that do not exist are left out. RecordError for a damaged file."""
        paths = (path for folder in folders for path in sorted(Path(folder).glob("*/*.json")))
        return cls(tuple(read(path) for path in paths))

    @classmethod
    def of(cls, records: str | os.PathLike[str] | None = "auto") -> Book:
        """What `compile(records=)` names: "auto" those that ship and the user's own, None none, else a folder.

        RecordError where the folder does not exist.
        """
        if records is None or records == "none":
            return cls()
        if records == "auto":
            return cls.open([shipped_folder(), own_folder()])
        if not Path(records).is_dir():
            raise RecordError(
                str(records),
                'a folder of records, "auto" or "none"',
                "no folder",
                "Make one with `tvm-doping tune --records FOLDER`.",
            )
        return cls.open([records])

    def find(
        self,
        operation: str,
        key: Key,
        machine: Machine,
        serves: Callable[[Record], bool] = lambda record: True,
    ) -> Found | None:
        """The nearest record of those that serve, of equals the faster; None where the nearest is too far."""
        found = [
            Found(record=record, distance=away, device=file.device)
            for file in self.files
            if isinstance(file, RecordFile) and file.operation == operation
            for record in file.records
            if (away := distance(record.key, key) + _machines(file.device, machine)) <= NEAR
        ]
        ranked = sorted(found, key=lambda f: (f.distance, f.record.score))
        return next((f for f in ranked if serves(f.record)), None)

    def loops(self, hash: str, tvm: str, machine: Machine) -> tuple[LoopRecord, Device] | None:
        """The record of a workload (`records.loops.Workload`) and where it was measured: that of the machine most like this one."""
        found = [
            (away, record.score, record, file.device)
            for file in self.files
            if isinstance(file, LoopFile) and (away := _machines(file.device, machine)) <= NEAR
            for record in file.records
            if (record.key.hash, record.key.tvm) == (hash, tvm)
        ]
        nearest = min(found, key=lambda f: f[:2], default=None)
        return None if nearest is None else (nearest[2], nearest[3])


def shipped_folder() -> Path:
    """The records that come with the package."""
    return Path(__file__).parent.parent / "schedules" / "records"


def own_folder() -> Path:
    """Where `tvm-doping tune` writes: $TVM_DOPING_RECORDS, else the user's folder for data."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "tvm-doping" / "records"


def distance(one: Key, other: Key) -> float:
    """0 for the same key; 1 for a size that is doubled; infinite for layers of which one says nothing of the other."""
    if (one.precision, one.batch, one.threads) != (other.precision, other.batch, other.threads):
        return math.inf
    if set(one.weights) != set(other.weights):
        return math.inf
    return sum(_apart(one.weights[name], other.weights[name]) for name in one.weights)


def _apart(one: Weight, other: Weight) -> float:
    if (one.kind, one.pattern) != (other.kind, other.pattern):
        return math.inf
    sizes = ((one.rows, other.rows), (one.columns, other.columns), (one.nnz, other.nnz))
    away = sum(_ratio(a, b) for a, b in sizes)
    return away + _FILL * abs(one.fill - other.fill) + _DIMS * (one.dims != other.dims)


def _machines(device: Device, machine: Machine) -> float:
    if device.target != machine.name:
        return math.inf
    return _CACHE * sum(
        _ratio(getattr(device, level), getattr(machine, level)) for level in ("l1", "l2", "l3")
    )


def _ratio(a: int, b: int) -> float:
    if a == b:
        return 0.0
    return abs(math.log2(a / b)) if a and b else math.inf
