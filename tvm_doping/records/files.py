"""Files of tuning records: read with every fault named, merged by keeping the faster, replaced in one step."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from tvm_doping.errors import RecordError
from tvm_doping.places import check_writable
from tvm_doping.records.loops import LOOPS, LoopFile, LoopRecord
from tvm_doping.records.model import FORMAT_VERSION, READ_VERSIONS, Device, Record, RecordFile
from tvm_doping.strict_json import read_json

AnyFile = RecordFile | LoopFile
AnyRecord = Record | LoopRecord
_AGAIN = "Correct or delete it; `tvm-doping tune` measures again."


def read(path: str | os.PathLike[str]) -> AnyFile:
    """The file's records. RecordError, with the place in the file, for what is missing, damaged, or of another version."""
    path = Path(path)
    try:
        raw = read_json(path, lambda needs, got: RecordError(str(path), needs, got, _AGAIN))
    except FileNotFoundError as error:
        raise RecordError(str(path), "a file of records", str(error), "Check the path.") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if isinstance(version, bool) or version not in READ_VERSIONS:
        known = " or ".join(map(str, READ_VERSIONS))
        raise RecordError(str(path), f"format_version {known}", repr(version)[:80], _AGAIN)
    try:
        return _kind(raw.get("operation")).model_validate({**raw, "format_version": FORMAT_VERSION})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))[:200] or "the whole"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        needs = str(first["msg"]).removeprefix("Value error, ")[:400]
        raise RecordError(f"{path}: {place}", needs, f"{repr(first['input'])[:80]}{more}", _AGAIN) from error


def save(
    folder: str | os.PathLike[str], device: Device, operation: str, records: Sequence[AnyRecord]
) -> Path:
    """Add records to <folder>/<device>/<operation>.json, the faster kept where a key is there already; returns its path.

    RecordError where the folder cannot be written or the file in it is damaged.
    """
    path = Path(folder) / slug(device) / f"{operation}.json"
    check_writable(path.parent, RecordError, str(folder))
    fresh: AnyFile = _kind(operation).model_validate(
        {"device": device, "operation": operation, "records": _faster(records)}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        whole = merge(read(path), fresh) if path.exists() else fresh
        new = path.with_suffix(".new")
        new.write_text(to_text(whole), encoding="utf-8")
        os.replace(new, path)
    return path


def merge(one: AnyFile, other: AnyFile) -> AnyFile:
    """The records of both, of the same key the faster. RecordError if they are of two machines or operations."""
    for name in ("device", "operation"):
        if getattr(one, name) != getattr(other, name):
            raise RecordError(
                "records to merge",
                f"the same {name}",
                f"{getattr(one, name)} and {getattr(other, name)}",
                "Merge files of one machine and operation.",
            )
    return one.model_copy(update={"records": _faster([*one.records, *other.records])})


def to_text(file: AnyFile) -> str:
    """As it is stored: indented, the same text for the same records."""
    return json.dumps(file.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"


def slug(device: Device) -> str:
    """The folder of a machine's records: x86-64-v3-amd-epyc-7b13."""
    return re.sub(r"[^a-z0-9]+", "-", f"{device.target} {device.cpu}".lower()).strip("-")


def _kind(operation: object) -> type[RecordFile] | type[LoopFile]:
    return LoopFile if operation == LOOPS else RecordFile


def _faster(records: Sequence[AnyRecord]) -> tuple[AnyRecord, ...]:
    best: dict[str, AnyRecord] = {}
    for record in records:
        key = record.key.model_dump_json()
        if key not in best or record.score < best[key].score:
            best[key] = record
    return tuple(best[key] for key in sorted(best))


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold other processes off the file meanwhile: two tuning jobs may end at the same time."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
