"""Where everything of a program in C lies: weights in their file, state and temporaries in an instance's memory."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np

from tvm_doping.errors import UnsupportedModel
from tvm_doping.freestanding.calls import Program, Value
from tvm_doping.freestanding.memory import ALIGNMENT, Life, aligned, arrange, in_a_row

# The instance itself: three pointers, before the state.
HEAD = 64


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Offsets in bytes: of weights in the weights' file, of states from the first on, of all else in the arena.

    workspace: by the number of a call; memory: of an instance in all, whatever the alignment of what the caller gives.
    """

    weights: dict[str, int]
    weight_bytes: int
    state: dict[str, int]
    state_bytes: int
    arena: dict[Value, int]
    workspace: dict[int, int]
    arena_bytes: int

    @property
    def memory(self) -> int:
        return ALIGNMENT - 1 + HEAD + self.state_bytes + self.arena_bytes

    def place(self, value: Value) -> str:
        """The value's address in C, from `w`, `s` or `a`, where weights, state and arena begin."""
        if value.kind == "weight":
            base, offset = "w", self.weights[value.name]
        elif value.kind == "state":
            base, offset = "s", self.state[value.name]
        else:
            base, offset = "a", self.arena[value]
        return f"{base} + {offset}" if offset else base

    def workspace_place(self, number: int) -> str:
        """The address in C of a call's workspace."""
        return f"a + {self.workspace[number]}" if self.workspace[number] else "a"


def layout(program: Program, workspace: dict[str, int]) -> Layout:
    """The static memory plan. Inputs live from before the first call, results until after the last."""
    for value, before in zip(program.new_state, program.state, strict=True):
        if value.kind == "state" and value is not before:
            raise UnsupportedModel(
                f"state {before.name!r}",
                "a new value of its own, for a program in C",
                f"the old value of {value.name!r}",
                "Compile it for TVM's runtime: --runtime tvm.",
            )
    end = len(program.calls)
    lives: dict[Hashable, Life] = {value: Life(value.bytes, -1, -1) for value in program.inputs}
    for number, call in enumerate(program.calls):
        for value in call.writes:
            lives[value] = Life(value.bytes, number, number)
        for value in call.reads:
            if value in lives:
                lives[value] = Life(value.bytes, lives[value].first, number)
        if workspace[call.kernel]:
            lives[number] = Life(workspace[call.kernel], number, number)
    for value in (*program.outputs, *program.new_state):
        if value in lives:
            lives[value] = Life(value.bytes, lives[value].first, end)
    arena, arena_bytes = arrange(lives)
    weights, weight_bytes = in_a_row({value.name: value.bytes for value in program.weights})
    state, state_bytes = in_a_row({value.name: value.bytes for value in program.state})
    return Layout(
        weights=weights,
        weight_bytes=aligned(weight_bytes),
        state=state,
        state_bytes=state_bytes,
        arena={key: at for key, at in arena.items() if isinstance(key, Value)},
        workspace={key: at for key, at in arena.items() if isinstance(key, int)},
        arena_bytes=arena_bytes,
    )


def packed(layout: Layout, arrays: Mapping[str, np.ndarray]) -> bytes:
    """The weights, each at its offset."""
    content = bytearray(layout.weight_bytes)
    for name, offset in layout.weights.items():
        array = np.ascontiguousarray(arrays[name]).tobytes()
        content[offset : offset + len(array)] = array
    return bytes(content)
