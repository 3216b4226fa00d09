"""What this machine's GPU can do, as CUDA's driver says. Importing this module loads nothing; asking loads the driver."""

from __future__ import annotations

import ctypes
import re
from functools import lru_cache

# Bundles ask for these beside the features of a CPU: "nvidia-sm_90" is a GPU of compute capability 9.0 or later.
PREFIX = "nvidia-"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@lru_cache(maxsize=1)
def compute_capability() -> tuple[int, int] | str:
    """Of the first GPU, (9, 0); or why there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no driver of NVIDIA's (libcuda.so.1)"
    count, numbers = ctypes.c_int(), []
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "a driver that finds no GPU"
    for attribute in (_MAJOR, _MINOR):
        number = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, 0)
        numbers.append(number.value)
    return numbers[0], numbers[1]


def name() -> str:
    """What the first GPU calls itself, "NVIDIA H200"; "a GPU" where there is none."""
    if isinstance(compute_capability(), str):
        return "a GPU"
    text = ctypes.create_string_buffer(256)
    ctypes.CDLL("libcuda.so.1").cuDeviceGetName(text, len(text), 0)
    return text.value.decode(errors="replace")


def lacking(feature: str) -> str | None:
    """What is here in place of the feature; None where the GPU has it."""
    have = compute_capability()
    if isinstance(have, str):
        return have
    return None if have >= capability(feature) else f"a GPU of compute capability {have[0]}.{have[1]}"


def capability(feature: str) -> tuple[int, int]:
    """The compute capability that a feature names: (9, 0) of "nvidia-sm_90"; one that no GPU has, of a name that is none."""
    number = feature.removeprefix(PREFIX + "sm_")
    return divmod(int(number), 10) if re.fullmatch("[0-9]{2,4}", number) else (1000, 0)
