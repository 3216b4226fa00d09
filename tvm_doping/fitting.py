"""Which variant of a bundle a machine runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from tvm_doping import gpu
from tvm_doping.errors import BundleError, TargetError
from tvm_doping.manifest import Manifest, TargetSpec
from tvm_doping.targets import DETECT, TARGETS, detect, missing_features


def choose_variant(
    name: str, targets: Sequence[TargetSpec], wanted: str = "auto", *, any_machine: bool = False
) -> int:
    """The index of the best of the variants of a bundle (which are sorted, the best first) that this CPU can run.

    That is the one for the very target that `auto` is here, else the first whose features the CPU has. wanted: the one for that
    target instead. any_machine: where none can run here, the first. Raises BundleError where there is none.
    """
    if wanted not in DETECT:
        for index, target in enumerate(targets):
            if target.name == wanted:
                return index
        raise BundleError(
            f"bundle {name!r}",
            f"code for {wanted}",
            f"code for {', '.join(target.name for target in targets)} only",
            f"Compile the model with `--target {wanted}`.",
        )
    missing = [missing_features(target.features) for target in targets]
    able = [index for index, features in enumerate(missing) if not features]
    if able:
        with suppress(TargetError):
            here = detect().name
            return next((index for index in able if targets[index].name == here), able[0])
        return able[0]
    if any_machine:
        return 0
    lacking = (
        f"{target.name} needs {', '.join(map(_in_words, features))}"
        for target, features in zip(targets, missing, strict=True)
    )
    first, names = targets[0], ", ".join(target.name for target in targets)
    wanting = [feature for features in missing for feature in features if feature.startswith(gpu.PREFIX)]
    if len(wanting) == len(targets):  # none is for a CPU
        least = min(wanting, key=gpu.capability)
        raise BundleError(
            f"bundle {name!r} for {names}",
            f"{_in_words(least)} or later, and its driver",
            str(gpu.lacking(least)),
            "Load it on such a machine, or compile the model for this one: `tvm-doping compile --target auto`.",
        )
    raise BundleError(
        f"bundle {name!r} for {names}",
        f"a CPU with {', '.join(first.features)}"
        if len(targets) == 1
        else "a machine that one of these runs on",
        f"one without {', '.join(missing[0])}" if len(targets) == 1 else f"another: {'; '.join(lacking)}",
        "Compile the model for this machine: `tvm-doping compile --target auto`.",
    )


def _in_words(feature: str) -> str:
    if not feature.startswith(gpu.PREFIX):
        return feature
    major, minor = gpu.capability(feature)
    return f"an NVIDIA GPU of compute capability {major}.{minor}"


def best_first(targets: Sequence[str]) -> list[int]:
    """The indices of variants, the best first: targets.TARGETS goes upwards; targets that it does not know follow as given."""
    rank = {name: position for position, name in enumerate(TARGETS)}
    return sorted(range(len(targets)), key=lambda index: -rank.get(targets[index], -1))


def check_machine(manifest: Manifest) -> None:
    """Raise BundleError where this CPU lacks a feature the code needs, or the TVM runtime here is of another
    release.
    """
    choose_variant(manifest.name, [manifest.target])
    made, here = manifest.versions.get("tvm", ""), _installed("apache-tvm")
    if made.split(".")[:2] != here.split(".")[:2]:
        raise BundleError(
            f"bundle {manifest.name!r}",
            f"the runtime of TVM {made or '(its manifest does not say which)'}",
            f"apache-tvm {here}" if here else "no apache-tvm",
            "Install that release, or compile the model with this one.",
        )


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
