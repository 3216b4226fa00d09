"""A prediction as a table in Markdown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm_doping.bench.predict.devices import Device
from tvm_doping.bench.predict.model import time

# Thakker et al., MLSys 2021, of their compressed language models on an Arm core.
PAPER = "2.5-5.5x"
# The memory's speed is the least certain of a device's numbers, and the one that matters most.
_SLOWER, _FASTER = 0.75, 1.25


def markdown(results: dict[str, Any]) -> str:
    """The device and its numbers, a row a model with its ratios to the dense ones, and where the time goes."""
    device, cells = results["device"], results["cells"]
    levels = ", ".join(f"{name} {_size(size)} {rate:g} GB/s" for name, size, rate in device["levels"])
    lines = [
        f"Predicted, not measured: {device['board']}; one thread, LSTM layers alone.",
        f"{device['mca']} of llvm-mca {results['llvm']}, {device['ghz']:g} GHz, {device['penalty']} cycles a "
        f"mispredicted branch, {levels}, memory {device['memory']:g} GB/s.",
        "",
        f"In brackets: were the memory {_SLOWER:.0%} or {_FASTER:.0%} as fast.",
        "",
        "| H | T | batch | model | formats | µs | MB, from | over dense fp32 | over int8 GEMV | bound by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for c in cells:
        lines.append("| " + " | ".join(_row(c, results)) + " |")
    lines += ["", f"The paper reports {PAPER} over its dense model.", "", "Where the numbers are from:", ""]
    lines += [f"- {name}: {source}" for name, source in device["sources"].items()]
    return "\n".join(lines)


def _row(c: dict[str, Any], results: dict[str, Any]) -> list[str]:
    cells = results["cells"]
    same = {d["model"]: d for d in cells if all(d.get(key) == c.get(key) for key in ("H", "T", "batch"))}
    device = Device(**results["device"])

    def ratio(name: str) -> str:
        if name not in same or name == c["model"]:
            return "1" if name in same else ""
        first, low, high = (
            _us(same[name], device, by) / _us(c, device, by) for by in (1.0, _SLOWER, _FASTER)
        )
        return f"{first:.1f} ({low:.1f}-{high:.1f})"

    ratios = [ratio(name) for name in ("dense", "gemv-int8")]
    reading = sum(p["us"] for p in c["phases"] if p["by"] == "reading") / max(c["us"], 1e-9)
    bound = "reading" if reading > 0.5 else "computing"
    where = f"{c['bytes'] / 1e6:.3g}, {c['level']}"
    head = [str(c.get("H", "")), str(c["T"]), str(c["batch"]), c["model"], c["formats"]]
    return [*head, f"{c['us']:.4g}", where, *ratios, bound]


def _us(c: dict[str, Any], device: Device, memory: float) -> float:
    """Microseconds of a cell, were the device's memory so many times as fast."""
    other = replace(device, memory=memory * device.memory)
    return sum(time(phase, other) for phase in c["phases"])


def _size(size: int) -> str:
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"
