"""What predictions need of a machine."""

from __future__ import annotations

import platform
import shutil

import pytest

TOOLS = {
    "x86-64-v3": ("llvm-mca", "llvm-objdump", "qemu-x86_64-static"),
    "cortex-a72": ("llvm-mca", "llvm-objdump", "qemu-aarch64-static", "aarch64-linux-gnu-gcc"),
}


def needs(target: str) -> None:
    """Skips where a prediction for the target cannot be made."""
    missing = [tool for tool in TOOLS[target] if shutil.which(tool) is None]
    if missing or platform.machine() != "x86_64":
        pytest.skip(f"predictions for {target} need {', '.join(missing) or 'an x86-64 host'}")
