"""The static memory plan: what lives at the same time lies apart, and all of it is small."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tvm_doping._tvm import tirx
from tvm_doping.freestanding.calls import largest
from tvm_doping.freestanding.kernels import _frame
from tvm_doping.freestanding.memory import ALIGNMENT, Life, aligned, arrange, in_a_row

lives = st.lists(st.tuples(st.integers(0, 1000), st.integers(-1, 12), st.integers(0, 6)), max_size=14).map(
    lambda rows: {i: Life(size, first, first + length) for i, (size, first, length) in enumerate(rows)}
)


@given(lives)
def test_what_lives_at_the_same_time_lies_apart(lives: dict[int, Life]) -> None:
    offsets, total = arrange(lives)
    for a in lives:
        assert offsets[a] % ALIGNMENT == 0 and offsets[a] + lives[a].bytes <= total
        for b in lives:
            together = lives[a].first <= lives[b].last and lives[b].first <= lives[a].last
            if a < b and together and lives[a].bytes and lives[b].bytes:
                assert offsets[a] + lives[a].bytes <= offsets[b] or offsets[b] + lives[b].bytes <= offsets[a]


@given(lives)
def test_it_is_no_larger_than_one_after_the_other_and_no_smaller_than_the_fullest_moment(
    lives: dict[int, Life],
) -> None:
    _, total = arrange(lives)
    assert total <= in_a_row({str(k): life.bytes for k, life in lives.items()})[1]
    for moment in range(-1, 20):
        assert total >= sum(aligned(x.bytes) for x in lives.values() if x.first <= moment <= x.last)


def test_memory_is_used_again() -> None:
    offsets, total = arrange({"a": Life(100, 0, 1), "b": Life(100, 1, 2), "c": Life(100, 2, 3)})
    assert total == 256 and offsets["a"] == offsets["c"]


def test_frames_are_read_from_assembly() -> None:
    notes = "\t.cfi_startproc\n\t.cfi_def_cfa_offset 16\n\tsubq\t$64, %rsp\n\t.cfi_def_cfa_offset 80\n\t.cfi_endproc\n"
    pointer = (
        "\t.cfi_startproc\n\t.cfi_def_cfa_offset 16\n\t.cfi_def_cfa_register %rbp\n"
        "\tandq\t$-64, %rsp\n\tsubq\t$256, %rsp\n\t.cfi_endproc\n"
    )
    vectors = "\t.cfi_startproc\n\tstp\tx29, x30, [sp, #-96]!\n\tsub\tsp, sp, #1712\n\taddvl\tsp, sp, #-1\n\t.cfi_endproc\n"
    assert (_frame(notes), _frame(pointer), _frame(notes + vectors)) == (80, 336, 96 + 1712 + 256)


def test_a_size_that_has_a_name_is_what_the_name_stands_for() -> None:
    T = tirx.Var("T", "int64")
    padded, rows = tirx.Var("padded", "int64"), tirx.Var("rows", "int64")
    binds = [tirx.Bind(padded, T + 2), tirx.Bind(rows, padded * 8)]
    assert largest(rows + T, 35, binds) == (35 + 2) * 8 + 35
    assert largest(T * 3, 35) == 105
