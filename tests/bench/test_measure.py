"""Timing is in turns and in microseconds; summaries are percentiles; cores are pinned and given back."""

from __future__ import annotations

import gc
import hashlib
import os
import sys
import threading
import time
from functools import partial

import numpy as np
import pytest

from tvm_doping.bench.engines.stream import Stream
from tvm_doping.bench.harness import check
from tvm_doping.bench.machine import describe, pinned
from tvm_doping.bench.measure import interleave, summarise
from tvm_doping.errors import BenchError


def test_samples_are_microseconds_a_call() -> None:
    samples = interleave({"sleep": lambda: time.sleep(0.003)}, seconds=0.01)
    assert len(samples["sleep"]) >= 7
    assert 3000 <= summarise(samples["sleep"])["median"] < 30000


def test_the_slower_of_two_is_seen_as_slower_by_about_its_factor() -> None:
    calls = {
        "one": partial(time.sleep, 0.001),
        "four": partial(time.sleep, 0.004),
    }  # a busy machine wakes late
    samples = interleave(calls, seconds=0.2)
    assert len(samples["one"]) == len(samples["four"])
    ratio = min(samples["four"]) / min(samples["one"])
    assert 2 < ratio < 4.5


def test_engines_take_turns() -> None:
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        time.sleep(0.021)  # long enough to be called once a turn

    interleave({name: partial(call, name) for name in "ab"}, seconds=0.01)
    turns = order[8:]  # after the four calls of each that estimate its time
    assert all({turns[i], turns[i + 1]} == {"a", "b"} for i in range(0, len(turns), 2))
    assert (
        len({"".join(turns[i : i + 2]) for i in range(0, len(turns), 2)}) == 2
    )  # not always in the same order


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell which threads run")
def test_a_turn_begins_when_threads_of_the_one_before_have_stopped_to_spin() -> None:
    spinning, seen = [threading.Thread()], []

    def leaves_a_thread_running() -> None:
        work = partial(hashlib.pbkdf2_hmac, "sha256", b"", b"", 200_000)  # without the interpreter's lock
        spinning[0] = threading.Thread(target=work)
        spinning[0].start()
        time.sleep(0.021)  # called once a turn

    def other() -> None:
        seen.append(spinning[0].is_alive())
        time.sleep(0.021)

    interleave({"spins": leaves_a_thread_running, "other": other}, seconds=0.01)
    assert any(seen[:4])  # while the time of a call is estimated, one after the other
    assert len(seen) >= 11
    assert not any(seen[4:])


def test_garbage_collection_is_on_again_even_after_a_failure() -> None:
    calls = iter(range(5))
    with pytest.raises(StopIteration):
        interleave({"fails": lambda: next(calls)}, seconds=0.1)
    assert gc.isenabled()


def test_a_summary() -> None:
    assert summarise([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == {"median": 3.5, "p20": 2.0, "p80": 5.0, "samples": 6}


def test_pinning_is_for_the_block_only() -> None:
    before = os.sched_getaffinity(0)
    with pinned(1) as cores:
        assert os.sched_getaffinity(0) == set(cores)
        assert len(cores) == 1
    assert os.sched_getaffinity(0) == before


def test_more_threads_than_cores_are_refused() -> None:
    with pytest.raises(BenchError, match="threads"), pinned(10_000):
        pass


def test_the_machine_is_described() -> None:
    machine = describe()
    assert machine["cores"] >= 1
    assert machine["versions"]["numpy"] == np.__version__


def echoing(offset: float) -> Stream:
    return Stream(call=lambda x: x + np.float32(offset), reset=lambda: None)


def test_an_engine_that_disagrees_is_refused_where_it_must_be_exact() -> None:
    xs = [np.ones((2, 1, 3), "float32")] * 2
    assert check("good", echoing(0.0), xs, xs, exact=True) == 0.0
    assert check("int8", echoing(0.01), xs, xs, exact=False) == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(BenchError, match=r"bad.*1\.0e-02"):
        check("bad", echoing(0.01), xs, xs, exact=True)


@pytest.mark.parametrize("exact", [True, False])
def test_nan_and_a_wrong_shape_are_never_accepted(exact: bool) -> None:
    xs = [np.ones((2, 1, 3), "float32")]
    with pytest.raises(BenchError, match="inf"):
        check("nan", echoing(np.nan), xs, xs, exact=exact)
    with pytest.raises(BenchError, match="shape"):
        check("short", Stream(call=lambda x: x[:1], reset=lambda: None), xs, xs, exact=exact)


def test_a_state_that_is_lost_between_calls_shows() -> None:
    total = [0.0]

    def call(x: np.ndarray) -> np.ndarray:
        total[0] += float(x.sum())
        return np.full_like(x, total[0])

    xs = [np.ones((1, 1, 1), "float32")] * 3
    expected = [np.full((1, 1, 1), k, "float32") for k in (1, 2, 3)]
    carrying = Stream(call=call, reset=lambda: total.__setitem__(0, 0.0))
    assert check("carries", carrying, xs, expected, exact=True) == 0.0
    with pytest.raises(BenchError):
        check("loses", echoing(0.0), xs, expected, exact=True)
