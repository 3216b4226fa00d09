"""Sessions: a stream with state, fed in any pieces, that refuses what does not fit."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bundle.conftest import OUT, WIDTH, executable, make_bundle, reference
from tvm_doping.errors import BundleError, DopingError, InvalidInput, SessionError
from tvm_doping.manifest import TensorSpec
from tvm_doping.runtime import Session, load


def sequence(steps, batch, seed=0):
    return np.random.default_rng(seed).standard_normal((steps, batch, WIDTH), np.float32)


@pytest.fixture
def session(bundle) -> Session:
    return bundle.session()


def test_run_equals_the_reference(session):
    xs = sequence(6, 3)
    expected, carry = reference(session.bundle.weights, xs, np.zeros((3, OUT), np.float32))
    np.testing.assert_allclose(session.run(xs), expected, atol=1e-5)
    np.testing.assert_allclose(session.state["carry"], carry, atol=1e-5)
    assert session.batch == 3


@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=5), batch=st.integers(1, 3))
def test_a_sequence_in_pieces_equals_the_whole(library, cuts, batch):
    bundle = make_bundle(library)
    xs = sequence(sum(cuts), batch)
    whole = bundle.session().run(xs)
    pieces, stream = [], bundle.session()
    for start, size in zip(np.cumsum([0, *cuts[:-1]]), cuts, strict=True):
        piece = xs[start : start + size]
        pieces.append(stream.run(piece) if size > 1 else stream.step(piece[0])[None])
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)


def test_outputs_stay_what_they_were(session):
    xs = sequence(3, 1)
    outputs = [session.step(x) for x in xs]
    copies = [output.copy() for output in outputs]
    outputs[-1][...] = 99  # an output is the caller's: changing it does not touch the stream
    session.step(xs[0])
    for output, copy in zip(outputs[:-1], copies[:-1], strict=True):
        np.testing.assert_array_equal(output, copy)
    np.testing.assert_allclose(session.state["carry"] - copies[-1], copies[0], atol=1e-5)


@pytest.mark.parametrize("returned", ["the input", "the state", "output as state", "a weight"])
def test_results_that_share_memory_are_copied(returned):
    def outputs(x, carry, y, new):
        match returned:
            case "the input":
                return [x, new]
            case "the state":
                return [carry, new]
            case "output as state":
                return [new, new]
        return [y, carry]

    library = executable(outputs)
    bundle = make_bundle(
        library,
        outputs=(
            TensorSpec(
                name="y",
                shape=("T", "N", WIDTH)
                if returned == "the input"
                else ("N", OUT)
                if returned != "a weight"
                else ("T", "N", OUT),
                dtype="float32",
            ),
        ),
    )
    session = bundle.session()
    a, b = sequence(2, 1)
    first = session.step(a)
    kept = first.copy()
    first[...] += 1
    state = session.state["carry"]
    session.step(b)
    np.testing.assert_array_equal(first, kept + 1)
    expected = np.zeros_like(state) if returned == "a weight" else reference(bundle.weights, a[None], 0)[1]
    np.testing.assert_allclose(state, expected, atol=1e-5)


def test_steps_after_reset_read_the_new_input(session):
    """The calls that were recorded before it read the buffers of then."""
    xs = sequence(4, 3)
    for x in xs[:2]:
        session.step(x)
    session.reset()
    expected, _ = reference(session.bundle.weights, xs[2:], np.zeros((3, OUT), np.float32))
    np.testing.assert_allclose(np.stack([session.step(x) for x in xs[2:]]), expected, atol=1e-5)


def test_reset_starts_anew_and_frees_the_batch(session):
    first = session.step(sequence(1, 2)[0])
    session.step(sequence(1, 2)[0])
    session.reset()
    assert session.batch is None
    np.testing.assert_array_equal(session.step(sequence(1, 2)[0]), first)
    session.reset()
    assert session.step(sequence(1, 5)[0]).shape == (5, OUT)


def test_a_batch_given_at_load_stays(saved):
    session = load(saved, batch=2)
    assert session.batch == 2
    np.testing.assert_array_equal(session.state["carry"], np.zeros((2, OUT), np.float32))
    with pytest.raises(SessionError, match=r"float32 \(2, 8\); got float32 \(3, 8\)"):
        session.step(sequence(1, 3)[0])
    session.reset()
    with pytest.raises(SessionError):
        session.run(sequence(1, 3))
    assert session.run(sequence(4, 2)).shape == (4, 2, OUT)


@pytest.mark.parametrize("batch", [0, -1, 1.5, "2", True])
def test_an_impossible_batch_is_refused(saved, batch):
    with pytest.raises(InvalidInput, match="batch"):
        load(saved, batch=batch)


def test_the_state_can_be_kept_and_put_back(bundle):
    xs = sequence(4, 2)
    session, other = bundle.session(), bundle.session()
    session.run(xs[:2])
    kept = session.state
    expected = session.run(xs[2:])
    other.state = kept
    assert other.batch == 2
    np.testing.assert_array_equal(other.run(xs[2:]), expected)
    session.state = [kept["carry"]]
    kept["carry"][...] = 0  # the session has a copy
    np.testing.assert_array_equal(session.run(xs[2:]), expected)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"h": np.zeros((2, OUT), np.float32)},
        {"carry": np.zeros((3, OUT), np.float32)},
        {"carry": np.zeros((2, OUT))},
        {"carry": [[0.0] * OUT] * 2},
        [],
        [np.zeros((2, OUT), np.float32)] * 2,
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(bundle, state):
    session = bundle.session(batch=2)
    session.step(sequence(1, 2)[0])
    before = session.state["carry"]
    with pytest.raises(SessionError):
        session.state = state
    np.testing.assert_array_equal(session.state["carry"], before)


def test_the_state_is_unknown_before_the_batch_is(session):
    with pytest.raises(SessionError, match="batch"):
        _ = session.state


@pytest.mark.parametrize(
    ("method", "array"),
    [
        ("step", np.zeros((1, WIDTH + 1), np.float32)),
        ("step", np.zeros((1, 1, WIDTH), np.float32)),
        ("step", np.zeros(WIDTH, np.float32)),
        ("step", np.zeros((1, WIDTH))),
        ("step", np.zeros((1, WIDTH), np.int32)),
        ("step", np.zeros((1, WIDTH), ">f4")),
        ("step", [[0.0] * WIDTH]),
        ("step", None),
        ("run", np.zeros((1, WIDTH), np.float32)),
        ("run", np.zeros((0, 1, WIDTH), np.float32)),
        ("run", np.zeros((1, 0, WIDTH), np.float32)),
        ("run", np.zeros((2, 1, WIDTH - 1), np.float32)),
        ("run", np.zeros((2, 1, WIDTH), np.float16)),
        ("run", "text"),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_an_input_that_does_not_fit_is_refused_and_changes_nothing(session, method, array, warm):
    if warm:
        session.step(sequence(1, 1)[0])
        before = session.state["carry"]
    with pytest.raises(SessionError, match="'x': needs a NumPy array float32"):
        getattr(session, method)(array)
    if warm:
        np.testing.assert_array_equal(session.state["carry"], before)
    assert session.step(sequence(1, 1)[0]).shape == (1, OUT)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("method", ["step", "run"])
def test_the_number_of_inputs_is_checked(session, method, count):
    with pytest.raises(SessionError, match="1 inputs"):
        getattr(session, method)(*[np.zeros((1, WIDTH), np.float32)] * count)


def test_inputs_of_any_layout_are_taken(bundle):
    xs = sequence(4, 2)
    expected = bundle.session().run(xs)
    shifted = (
        np.empty(xs.nbytes + 4, np.uint8)[4:].view(np.float32).reshape(xs.shape)
    )  # 4 bytes off any alignment
    shifted[...] = xs
    frozen = xs.copy()
    frozen.flags.writeable = False
    for layout in (shifted, np.asfortranarray(xs), np.repeat(xs, 2, axis=0)[::2], frozen):
        np.testing.assert_array_equal(bundle.session().run(layout), expected)
        session = bundle.session()
        np.testing.assert_allclose(np.stack([session.step(x) for x in layout]), expected, atol=1e-5)


def test_a_closed_session_refuses_everything(session):
    session.step(sequence(1, 1)[0])
    with session as same:
        assert same is session and not session.closed
    session.close()
    assert session.closed and "closed" in repr(session)
    for use in (
        lambda: session.step(sequence(1, 1)[0]),
        lambda: session.run(sequence(1, 1)),
        session.reset,
        session.verify,
        lambda: session.state,
        lambda: setattr(session, "state", {}),
        session.__enter__,
    ):
        with pytest.raises(SessionError, match="closed"):
            use()


def test_sessions_are_independent(bundle):
    a, b = bundle.session(), bundle.session()
    xs = sequence(3, 1)
    a.run(xs)
    np.testing.assert_array_equal(b.run(xs), bundle.session().run(xs))
    a.close()
    b.step(xs[0])


def test_outputs_outlive_the_session(bundle):
    with bundle.session() as session:
        y = session.run(sequence(100, 4))
    copy = y.copy()
    with bundle.session() as session:
        session.run(sequence(100, 4, seed=1))
    np.testing.assert_array_equal(y, copy)


def test_threads_wait_for_each_other(session):
    x = np.ones((1, WIDTH), np.float32)
    one = session.step(x)
    session.reset()
    threads = [threading.Thread(target=lambda: [session.step(x) for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(session.state["carry"], 800 * one, rtol=1e-3)


def test_indices_outside_their_table_are_refused(library):
    spec = TensorSpec(name="x", shape=("T", "N", WIDTH), dtype="float32", below=7)
    session = make_bundle(library, inputs=(spec,)).session()
    session.step(np.full((1, WIDTH), 6, np.float32))
    for bad in (-1, 7):
        with pytest.raises(SessionError, match=r"0\.\.6"):
            session.step(np.full((1, WIDTH), bad, np.float32))
        with pytest.raises(SessionError, match=r"0\.\.6"):
            session.run(np.full((2, 1, WIDTH), bad, np.float32))


def test_a_model_that_reads_backwards_refuses_single_steps(library):
    session = make_bundle(library, streaming=False).session()
    with pytest.raises(SessionError, match="backwards"):
        session.step(sequence(1, 1)[0])
    assert session.run(sequence(2, 1)).shape == (2, 1, OUT)


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": (TensorSpec(name="x", shape=("T", "N", WIDTH + 1), dtype="float32"),)},
        {"inputs": (TensorSpec(name="x", shape=("T", "N", WIDTH), dtype="float64"),)},
        {"state": (TensorSpec(name="carry", shape=("N", OUT + 1), dtype="float32"),)},
        {"state": ()},
        {"outputs": tuple(TensorSpec(name=n, shape=("T", "N", OUT), dtype="float32") for n in "ab")},
    ],
)
def test_a_manifest_that_lies_about_its_code_is_an_error_not_a_crash(library, changes):
    session = make_bundle(library, **changes).session()
    spec = session.bundle.manifest.inputs[0]
    with pytest.raises(SessionError, match="manifest"):
        session.run(np.zeros((2, 1, int(spec.shape[2])), spec.dtype))


def test_verify_reruns_the_golden_input_and_leaves_the_stream_alone(saved):
    session = load(saved, verify=True)
    session.step(sequence(1, 1)[0])
    before = session.state["carry"]
    assert session.verify() < 1e-5
    np.testing.assert_array_equal(session.state["carry"], before)


@pytest.mark.parametrize("name", ["output.y", "new_state.carry"])
@pytest.mark.parametrize("value", [0.01, np.nan])
def test_verify_finds_a_wrong_number(bundle, name, value):
    bundle.golden[name].flat[3] += np.float32(value)
    with pytest.raises(BundleError, match=f"'{name.rpartition('.')[2]}' of 'tiny'"):
        bundle.session(verify=True)


@pytest.mark.parametrize("name", ["input.x", "state.carry", "output.y", "new_state.carry"])
def test_verify_needs_its_golden_arrays(bundle, name):
    del bundle.golden[name]
    with pytest.raises(BundleError, match=name):
        bundle.session(verify=True)


@pytest.mark.parametrize("name", ["input.x", "state.carry", "output.y", "new_state.carry"])
def test_verify_refuses_golden_arrays_of_another_shape(bundle, name):
    bundle.golden[name] = bundle.golden[name][..., :-1].copy()
    with pytest.raises(BundleError, match="tiny"):
        bundle.session(verify=True)


def test_errors_are_of_one_family():
    assert issubclass(SessionError, DopingError) and issubclass(BundleError, DopingError)


PRELUDE = """
import sys
import numpy as np
def stream():
    from tvm_doping import load
    with load({path!r}, verify=True) as s:
        y = s.step(np.ones((1, 8), np.float32))
    assert y.shape == (1, 5)
"""
ORDERS = {
    "bundle alone": "stream()\nassert not {'torch', 'tvm', 'safetensors.torch'} & set(sys.modules)",
    "tvm, then bundle": "import tvm\nstream()",
    "bundle, then tvm and its compiler": """
stream()
import tvm, torch
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program
ep = torch.export.export(torch.nn.Linear(3, 2).eval(), (torch.zeros(4, 3),))
ex = tvm.compile(from_exported_program(ep), "llvm")
out = relax.VirtualMachine(ex, tvm.cpu())["main"](tvm.runtime.tensor(np.ones((4, 3), np.float32)))
assert out[0].numpy().shape == (4, 2)
import tvm_ffi
assert tuple(tvm_ffi.from_dlpack(torch.ones(3)).shape) == (3,)
stream()
""",
    "torch, then bundle": "import torch\nstream()\nassert float(torch.ones(3).sum()) == 3",
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_bundle_and_the_whole_of_tvm_live_in_one_process(saved, order):
    code = PRELUDE.format(path=str(saved)) + ORDERS[order]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_nothing_is_no_bundle_and_no_state(session):
    with pytest.raises(InvalidInput, match="the path of a folder; got NoneType"):
        load(None)  # type: ignore[arg-type]
    with pytest.raises(SessionError, match=r"got NoneType.*reset\(\)"):
        session.state = None
