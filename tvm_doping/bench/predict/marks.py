"""A kernel cut into phases: the loops of a step, one after the other, each behind a call that a trace of its execution shows.

The calls stand between loops, where no sum is under way, and LLVM compiles the loops as it does without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm_doping._tvm import tirx, tvm
from tvm_doping.kernels.trees import found

MARK = "doping_mark_"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A loop of constant extent that no other such loop contains; reads: the parameters of its kernel that it reads."""

    kernel: str
    reads: tuple[str, ...]

    @property
    def label(self) -> str:
        """What is computed, by what is read: "ih.S" is S of the input product, "ih.W" a dense one."""
        if not self.reads:
            return "element-wise"
        return max((_stem(name) for name in self.reads), key=len)


def marked(function: Any, kernel: str, names: Sequence[str], first: int) -> tuple[Any, list[Phase]]:
    """The function with a call of doping_mark_<first + i> before its phase i, and its phases; names: of all its parameters."""
    phases: list[Phase] = []
    parameters = list(zip(names, function.params, strict=True))

    def visit(statement: Any) -> Any:
        if isinstance(statement, tirx.SeqStmt):
            return tirx.SeqStmt([visit(one) for one in statement.seq])
        if not isinstance(statement, tirx.For):
            return statement
        loop = statement
        # Steps and streams are loops of symbolic extent: what is in them runs once a step.
        if not isinstance(loop.extent, tirx.IntImm):
            return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, visit(loop.body))
        sources = [load.source for load in found(loop, tvm.ir.TensorLoad)]
        reads = [name for name, p in parameters if any(p.same_as(source) for source in sources)]
        call = tirx.call_extern("int32", f"{MARK}{first + len(phases)}")
        phases.append(Phase(kernel=kernel, reads=tuple(reads)))
        return tirx.SeqStmt([tirx.Evaluate(call), loop])

    return function.with_body(visit(function.body)), phases


def _stem(name: str) -> str:
    """ "ih.S" of "ih.S.values", "ih.B (x) C" of a Kronecker factor, the name itself of others."""
    prefix, _, rest = name.partition(".")
    if rest in ("B", "Ct"):
        return f"{prefix}.B (x) C"
    return ".".join(name.split(".")[:2])
