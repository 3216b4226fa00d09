"""model.json, what a folder of C says of itself: sizes, checksums and how it was made. Imports neither torch nor TVM."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tvm_doping.bundle_files import check_file
from tvm_doping.document import FileRecord
from tvm_doping.errors import BundleError
from tvm_doping.manifest import LayerReport, RoundingError, Size, TargetSpec, TensorSpec
from tvm_doping.places import check_replaceable, check_writable
from tvm_doping.sparsity.values import Precision
from tvm_doping.strict_json import read_json

NAME = "model.json"
_LARGEST = 64 * 2**20


class Sizes(BaseModel):
    """Bytes: code and constants of the kernels, weights, an instance's RAM, of it the state, a kernel's largest stack frame."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: Size
    weights: Size
    memory: Size
    state: Size
    frame: Size


class Report(BaseModel):
    """model.json. weights: part of the program ("object"), or brought by the caller ("file"); files: the other files."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format_version: Literal[1] = 1
    runtime: Literal["c"] = "c"
    name: str
    prefix: str
    target: TargetSpec
    triple: str
    inputs: tuple[TensorSpec, ...]
    state: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    streaming: bool
    batch: int
    steps: int
    weights: Literal["object", "file"]
    sizes: Sizes
    tolerance: float
    golden_error: float | None
    precision: Precision
    precision_error: dict[str, RoundingError]
    layers: tuple[LayerReport, ...]
    versions: dict[str, str]
    files: dict[str, FileRecord] = {}


def check_place(folder: Path) -> None:
    """Raise BundleError where a folder of C cannot be written to the place: to ask before compiling."""
    check_replaceable(folder.resolve(), NAME, BundleError)
    check_writable(folder.resolve().parent, BundleError, str(folder))


def read_report(folder: Path) -> Report:
    """The report of a folder, its files checked against it. Raises BundleError for what is missing, damaged or edited."""
    path = folder / NAME

    def refuse(needs: str, got: str) -> BundleError:
        return BundleError(str(path), needs, got, "Compile the model anew.")

    try:
        report = Report.model_validate(read_json(path, refuse, largest=_LARGEST))
    except (FileNotFoundError, ValidationError) as error:
        raise refuse("what `tvm-doping compile --runtime c` wrote", str(error)[:200]) from error
    for name, record in report.files.items():
        check_file(folder, name, record)
    return report
