"""Whether a model is a stream: whether pieces of a sequence, the state carried on, give in PyTorch what all of it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tvm_doping.frontend.reference import Reference
from tvm_doping.frontend.signature import TIME, Signature, Tensor

Arrays = dict[str, np.ndarray]

# Steps one by one, and longer pieces, which an operator across time takes otherwise.
_PIECES = ((1, 1, 1, 1, 1, 1), (2, 4))
_STEPS = 6
_SEED = 0
_ROUNDING = 1e-5


def why_no_stream(
    signature: Signature,
    reference: Reference,
    example: Mapping[str, np.ndarray],
    layers: Sequence[str],
    tolerance: float,
) -> str:
    """Why steps in a row do not equal one run over them; "" where they do.

    The LSTMs alone do not tell: a softmax over time, or an LSTM that starts from a learned state, is no stream either. So it
    is tried, in PyTorch, with random inputs and a state that is not zero; differences up to the tolerance are rounding.
    """
    if any(name.endswith("_reverse") for name in layers):
        return "the model also reads it backwards"
    if signature.time_axis is None:
        return "no input of the model has a time axis that varies"
    inputs, state = _inputs(signature, example)
    try:
        outputs, final = _run(reference, {**inputs, **state})
        wanted = {**outputs, **final}
        for lengths in _PIECES:
            got = _in_pieces(signature, reference, inputs, state, lengths)
            for name, whole in wanted.items():
                if why := _difference(name, got[name], whole, lengths, max(tolerance, _ROUNDING)):
                    return why
    except Exception as error:  # whatever PyTorch raises for a length that the model cannot take
        first_line = (str(error).strip().splitlines() or ["no message"])[0]
        return f"pieces of a sequence are no input of the model ({type(error).__name__}: {first_line[:200]})"
    return ""


def _inputs(signature: Signature, example: Mapping[str, np.ndarray]) -> tuple[Arrays, Arrays]:
    """Inputs of _STEPS steps and a state for them. Their values are the example's, which the model is known to take, in random
    order: inputs that repeat would hide what depends on time.
    """
    random = np.random.default_rng(_SEED)
    sizes: dict[int | str, int] = {}
    for spec in signature.inputs:
        sizes.update(zip(spec.shape, example[spec.name].shape, strict=True))
    sizes[TIME] = _STEPS

    def values(spec: Tensor) -> np.ndarray:
        given, shape = example[spec.name], [d if isinstance(d, int) else sizes[d] for d in spec.shape]
        if spec.below is not None:
            return random.integers(0, spec.below, shape, dtype=spec.dtype)
        if given.dtype.kind == "f" and not np.ptp(given):  # zeros, as a placeholder
            return random.standard_normal(shape).astype(spec.dtype)
        return random.choice(given.ravel(), shape)

    def start(spec: Tensor) -> np.ndarray:
        shape = [d if isinstance(d, int) else sizes[d] for d in spec.shape]
        return (0.5 * random.standard_normal(shape)).astype(spec.dtype)

    return {s.name: values(s) for s in signature.inputs}, {s.name: start(s) for s in signature.state}


def _in_pieces(
    signature: Signature, reference: Reference, inputs: Arrays, state: Arrays, lengths: tuple[int, ...]
) -> dict[str, list[np.ndarray]]:
    """The outputs of each piece, and the states after it."""
    results: dict[str, list[np.ndarray]] = {spec.name: [] for spec in (*signature.outputs, *signature.state)}
    for piece in _cut(signature, inputs, lengths):
        outputs, state = _run(reference, {**piece, **state})
        for name, array in {**outputs, **state}.items():
            results[name].append(array)
    return results


def _run(reference: Reference, arrays: Arrays) -> tuple[Arrays, Arrays]:
    """Outputs and new state; the scores in place of indices chosen by them, which rounding may turn over where they are equal."""
    outputs, state, scores = reference.run(arrays)
    return {**outputs, **scores}, state


def _cut(signature: Signature, inputs: Arrays, lengths: tuple[int, ...]) -> Iterator[Arrays]:
    """The inputs of each piece; those without a time axis are the same in all."""
    axes = {spec.name: spec.shape.index(TIME) for spec in signature.inputs if TIME in spec.shape}
    ends = np.cumsum(lengths)
    for start, end in zip(ends - lengths, ends, strict=True):
        yield {
            name: array if name not in axes else np.take(array, range(start, end), axis=axes[name])
            for name, array in inputs.items()
        }


def _difference(
    name: str, pieces: list[np.ndarray], whole: np.ndarray, lengths: tuple[int, ...], tolerance: float
) -> str:
    """What differs between an output in pieces and whole: put together along the axis that is as long as the sequence; one
    without such an axis is what it is after the last piece.
    """
    words = f"{name!r} of {_STEPS} steps taken {' + '.join(map(str, lengths))}"
    # an axis without time is the same in all pieces
    last = pieces[-1]
    axes = [i for i, (a, b) in enumerate(zip(last.shape, whole.shape, strict=True)) if a != b]
    got = np.concatenate(pieces, axis=axes[0]) if len(axes) == 1 else last
    if got.shape != whole.shape:
        return f"{words} has shape {got.shape}, taken at once {whole.shape}"
    if not whole.size or np.array_equal(got, whole, equal_nan=whole.dtype.kind == "f"):
        return ""
    error = float(np.max(np.abs(got.astype("float64") - whole)))
    allowed = tolerance * max(1.0, float(np.max(np.abs(whole))))
    return "" if error <= allowed else f"{words} is {error:.2g} off from them taken at once"
