"""The element-wise part of a step, for the units of a block: from the sums of the gates to c and h."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm_doping._tvm import T, tirx
from tvm_doping.kernels.activations import sigmoid, sigmoid_tanh
from tvm_doping.kernels.cuda.parts import Cut
from tvm_doping.kernels.cuda.words import WARP, Block, Buffer, Expr, Piece, clamp, when

Read = Callable[[Expr], Expr]


@dataclass(frozen=True)
class Cell:
    """c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g), h_t = sigmoid(o) tanh(c_t), into y, c, and h after the last step."""

    io: dict[str, Buffer]
    cut: Cut
    block: Block

    def stream(self, n: Expr, t: Expr, before: Read, gate: Read, *, last: Expr | None) -> None:
        """Of one stream; gate(row) is the sum of a row of the part, before(unit) the c before; last None: always."""
        with self.block.each(self.cut.each) as u, self._unit(u) as unit:
            gates = [T.bind(gate(k * self.cut.each + u)) for k in range(4)]
            c, h = self._states(gates, before(unit))
            T.buffer_store(self.io["c"], c, [n, unit])
            T.buffer_store(self.io["y"], h, [t, n, unit])
            self._finally(last, n, unit, h)

    def tile(
        self,
        tile: Expr,
        t: Expr,
        batch: Expr,
        y: Piece,
        write: Callable[[Expr, Expr], None],
        *,
        first: Expr,
        last: Expr,
    ) -> None:
        """Of 32 streams, a lane each; y [row][stream] holds the sums, write(unit, h) keeps h for the next step."""
        lane = self.block.lane
        n = T.bind(tirx.Cast("int64", tile) * WARP + lane)
        there = T.bind(
            tirx.min(n, batch - 1)
        )  # lanes beyond the last stream compute it once more, and write nothing
        with self.block.each(self.cut.each, warps=True) as u, self._unit(u) as unit:
            gates = [T.bind(y[(k * self.cut.each + u) * WARP + lane]) for k in range(4)]
            old = tirx.if_then_else(first, self.io["c0"][there, unit], self.io["c"][there, unit])
            c, h = self._states(gates, old)
            write(unit, h)
            with when(n < batch):
                T.buffer_store(self.io["c"], c, [n, unit])
                T.buffer_store(self.io["y"], h, [t, n, unit])
                self._finally(last, n, unit, h)

    def _unit(self, u: Expr) -> Any:
        """The hidden unit of unit u of the part, where there is one: the last part may have fewer."""
        return _Bound(self.block.x * self.cut.each + u, self.cut.units, self.cut.parts * self.cut.each)

    @staticmethod
    def _states(gates: list[Expr], before: Expr) -> tuple[Expr, Expr]:
        i, f, g, o = gates
        c = T.bind(sigmoid(f, 1, before, clamp) + sigmoid_tanh(i, g, 1, clamp))
        return c, T.bind(sigmoid_tanh(o, c, 1, clamp))

    def _finally(self, last: Expr | None, n: Expr, unit: Expr, h: Expr) -> None:
        if last is None:
            T.buffer_store(self.io["h"], h, [n, unit])
            return
        with when(last):
            T.buffer_store(self.io["h"], h, [n, unit])


class _Bound:
    """`with` a number: bound, and only where it lies below a limit that it may reach."""

    def __init__(self, value: Expr, limit: int, reach: int) -> None:
        self.value, self.limit, self.reach = value, limit, reach
        self.guard: Any = None

    def __enter__(self) -> Expr:
        unit = T.bind(self.value)
        if self.reach > self.limit:
            self.guard = when(unit < self.limit)
            self.guard.__enter__()
        return unit

    def __exit__(self, *error: Any) -> None:
        if self.guard is not None:
            self.guard.__exit__(*error)
