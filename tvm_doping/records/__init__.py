"""Tuning records: for a layer like this on a machine like that, the schedule that was measured to be fastest."""

from tvm_doping.records.book import Book, Found, distance, own_folder
from tvm_doping.records.files import merge, read, save, slug
from tvm_doping.records.loops import LoopFile, LoopRecord, Workload
from tvm_doping.records.model import (
    Choice,
    Device,
    GridNumbers,
    Key,
    Numbers,
    Record,
    RecordFile,
    Way,
    Weight,
    batch_class,
)

__all__ = [
    "Book",
    "Choice",
    "Device",
    "Found",
    "GridNumbers",
    "Key",
    "LoopFile",
    "LoopRecord",
    "Numbers",
    "Record",
    "RecordFile",
    "Way",
    "Weight",
    "Workload",
    "batch_class",
    "distance",
    "merge",
    "own_folder",
    "read",
    "save",
    "slug",
]
