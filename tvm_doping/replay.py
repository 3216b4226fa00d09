"""One step without the virtual machine: the kernel calls that it made once, made again on the same buffers.

The VM spends 0.1-0.2 us on each of a step's instructions, most of which check shapes and allocate: for a
small model ten times what its kernels take. In a step T is 1 and N is fixed, so that every step makes the
same calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np

from tvm_doping._runtime import Function, as_numpy, item, new_machine, weights_of

# The VM's own functions that compute nothing: what they give depends on shapes alone.
_STRUCTURAL = frozenset(
    f"vm.builtin.{name}"
    for name in [
        "alloc_shape_heap",
        "alloc_storage",
        "alloc_tensor",
        "check_prim_value_info",
        "check_shape_info",
        "check_tensor_info",
        "check_tuple_info",
        "make_prim_value",
        "make_shape",
        "make_tuple",
        "match_prim_value",
        "match_shape",
        "null_value",
        "reshape",
        "shape_of",
        "tuple_getitem",
    ]
)


class Replay:
    """The calls of one step. Their inputs and the state before are read, and the state is written, in place.

    calls    (kernel, arguments), in order; arguments are tensors on buffers that stay;
    outputs  what a step returns, as views of these buffers: each step writes them anew;
    state    (buffer of the state, buffer of the new state).
    """

    def __init__(
        self,
        calls: list[tuple[Any, tuple[Any, ...]]],
        outputs: list[np.ndarray],
        state: list[tuple[np.ndarray, np.ndarray]],
    ) -> None:
        self.calls, self.outputs, self.state = calls, outputs, state

    def step(self) -> list[np.ndarray]:
        """Run the calls; returns copies of the outputs."""
        for kernel, arguments in self.calls:
            kernel(*arguments)
        for before, after in self.state:
            before[...] = after
        return [output.copy() for output in self.outputs]


def record(
    library: Any, inputs: Sequence[Any], state: Sequence[Any], weights: Any, squeeze: Sequence[Any]
) -> Replay | None:
    """The replay of a step with these tensors; None where a step is more than calls of kernels.

    That is where the VM decides by values, copies, or calls into other languages, and where results share
    memory with what is given. Before it is used, the replay must give what the VM gave, bit by bit.
    """
    results, calls, strange = observed(new_machine(library), inputs, state, weights, len(squeeze))
    arrays = list(map(as_numpy, results))
    old = list(map(as_numpy, state))
    given = [*map(as_numpy, inputs), *old, *map(as_numpy, weights_of(weights))]
    if strange or any(np.may_share_memory(a, b) for a in arrays for b in given):
        return None
    count = len(squeeze)
    if any(after.shape != before.shape for before, after in zip(old, arrays[count:], strict=True)):
        return None
    expected = [array.copy() for array in arrays]
    for array in arrays:
        array.reshape(-1).view(np.uint8).fill(0xFF)
    for kernel, arguments in calls:
        kernel(*arguments)
    if any(array.tobytes() != wanted.tobytes() for array, wanted in zip(arrays, expected, strict=True)):
        return None
    outputs = [array[at] for array, at in zip(arrays, squeeze, strict=False)]
    return Replay(calls, outputs, list(zip(old, arrays[count:], strict=True)))


def observed(
    machine: Any, inputs: Sequence[Any], state: Sequence[Any], weights: Any, count: int
) -> tuple[list[Any], list[tuple[Any, tuple[Any, ...]]], list[str]]:
    """The results of a step, `count` outputs and the new state; the kernels that it called, with their arguments; and the names of
    what else it did. The machine is this function's: an observer cannot be taken off again.
    """
    calls: list[tuple[Any, tuple[Any, ...]]] = []
    strange: list[str] = []

    def observe(function: Any, name: str, before: bool, result: Any, *arguments: Any) -> int:
        if before and name not in _STRUCTURAL:
            if name.startswith("vm.") or not isinstance(function, Function):
                strange.append(name)
            calls.append((function, arguments))
        elif not before and result is not None and name not in _STRUCTURAL:
            strange.append(name)
        return 0  # go on

    machine["set_instrument"](observe)
    results = machine["main"](*inputs, *state, weights)
    return list(map(item, repeat(results), range(count + len(state)))), calls, strange
