"""All that can be known of a bundle without running any of it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from tvm_doping.bundle import Bundle
from tvm_doping.bundle_files import MANIFEST, VOCABULARY, read_document
from tvm_doping.elf import SharedLibrary
from tvm_doping.errors import BundleError
from tvm_doping.manifest import bytes_by_layer

# What a compiled model may ask of others: TVM's runtime; memory, threads and time of the C library; its mathematics; and what
# compilers put in.
_ASKS = re.compile(
    r"TVM\w+|(pthread|sched)_\w+|mem(cpy|move|set|cmp)|malloc|calloc|realloc|free|aligned_alloc|posix_memalign"
    r"|clock_gettime|nanosleep|sysconf|syscall|getauxval|abort|__tls_get_addr|__stack_chk_fail|__errno_location"
    r"|__(add|sub|mul|div|extend|trunc|float|fix|eq|lt|le|gt|ge|aarch64)\w+"
    r"|a?(sin|cos|tan)h?f?|atan2f?|(exp|exp2|expm1|log|log2|log10|log1p|pow|sqrt|cbrt|erf|erfc|fma|fmod|fabs|floor|ceil|round|rint"
    r"|nearbyint|trunc|copysign|ldexp|hypot|fmin|fmax|tgamma|lgamma|nextafter)f?"
)
_NEEDS = re.compile(
    r"(libc|libm|libpthread|libdl|libgcc_s|libstdc\+\+|libtvm_runtime|libtvm_ffi|ld-linux[\w-]*)\.so(\.\d+)*"
)
_FEATURE = {"x86_64": "sse2", "aarch64": "asimd"}  # what every CPU of the kind has, and no other
_EXECUTABLE = "__tvm_ffi__library_bin"  # the Relax executable that `main` is read from


def verify(folder: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Check every file of a bundle and every variant in it; returns what was checked, and what was found in order.

    Beyond what loading checks of the variant that it takes: all variants, the library's ELF header and sections, the symbols
    that it defines and asks for, the libraries it needs, bytes of the layers, finite golden values, and tokens against the
    vocabulary. Raises BundleError that lists all faults of the variants, or the first of the files.
    """
    path = Path(folder)
    document = read_document(path.resolve())
    found = [
        ("files", f"{len(document.files)} of {MANIFEST}: there, in the folder, with their sizes and sha256")
    ]
    faults: list[str] = []
    for variant in document.variants:
        name = variant.target.name
        part = Bundle.load(path, target=name, any_machine=True)
        arrays = len(part.weights) + len(part.golden)
        found.append(
            (
                f"{name}: arrays",
                f"{arrays}, of the shapes and dtypes listed; weights finite; the golden run fits the signature",
            )
        )
        own = [*_golden_faults(part), *_layer_faults(part), *_token_faults(part)]
        try:
            library = SharedLibrary.read(part.library)
        except ValueError as error:
            own.append(f"{variant.library}: not {error}")
        else:
            own += [f"{variant.library}: {fault}" for fault in _library_faults(part, library)]
            kernels = sum(symbol.startswith("__tvm_ffi_") for symbol in library.defines)
            asks = f"asks {len(library.asks)} symbols of {', '.join((*library.needs, 'TVM'))}"
            found.append(
                (f"{name}: {variant.library}", f"ELF for {library.machine}, {kernels} functions; {asks}")
            )
        faults += [f"{name}: {fault}" for fault in own]
    if faults:
        more = f" and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise BundleError(
            str(path), "to be as it says", "; ".join(faults[:8])[:2000] + more, "Compile the model anew."
        )
    return found


def _library_faults(part: Bundle, library: SharedLibrary) -> list[str]:
    faults = []
    feature = _FEATURE.get(library.machine)
    if feature not in part.manifest.target.features:
        faults.append(
            f"code for {library.machine}, and a target that asks for {', '.join(part.manifest.target.features)[:80]}"
        )
    if _EXECUTABLE not in library.defines:
        faults.append(f"no {_EXECUTABLE}")
    faults += [
        f"asks for the symbol {symbol[:80]}" for symbol in sorted(library.asks) if not _ASKS.fullmatch(symbol)
    ]
    faults += [f"needs {name[:80]}" for name in library.needs if not _NEEDS.fullmatch(name)]
    return faults + [f"looks for libraries in {path[:80]}" for path in library.paths]


def _golden_faults(part: Bundle) -> list[str]:
    return [
        f"golden {name[:80]} is not finite"
        for name, array in part.golden.items()
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    ]


def _layer_faults(part: Bundle) -> list[str]:
    layers = {layer.name: layer.bytes for layer in part.manifest.layers}
    stored = bytes_by_layer(layers, part.weights)
    return [
        f"layer {name[:80]} of {count} bytes has arrays of {stored[name]}"
        for name, count in layers.items()
        if stored[name] not in (0, count)  # an array that layers share is one layer's
    ]


def _token_faults(part: Bundle) -> list[str]:
    size, below = len(part.vocabulary), part.manifest.inputs[0].below
    if part.manifest.tokens and below != size:
        return [f"{VOCABULARY} of {size} tokens, for inputs below {below}"]
    return []
