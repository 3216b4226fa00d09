"""What a compiled model takes and gives, in the order of its function `main`. Imports neither torch nor TVM."""

from __future__ import annotations

from dataclasses import dataclass

TIME, BATCH = "T", "N"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input, state or output; "T" and "N" in its shape are the time steps and the batch, whatever they are.

    below: an integer input indexes a table of so many rows, so its values must lie in 0 .. below-1.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    below: int | None = None


@dataclass(frozen=True, kw_only=True)
class Signature:
    """main(*inputs, *state, weights) returns (*outputs, *new state), the state in the same order.

    no_stream: why steps in a row do not equal one run over them, to be read after "as"; "" where they do.
    """

    inputs: tuple[Tensor, ...]
    state: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    no_stream: str = ""

    @property
    def streaming(self) -> bool:
        """Whether steps in a row equal one run over them."""
        return not self.no_stream

    @property
    def time_axis(self) -> int | None:
        """Where T stands in the first input that has it; None for a model without time."""
        return next((t.shape.index(TIME) for t in self.inputs if TIME in t.shape), None)
