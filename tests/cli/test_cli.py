"""The command line: complete and instant help, results in files, and one clean line for every mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import types
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tvm_doping
from tests.bundle.conftest import OUT, WIDTH, reference
from tvm_doping import cli
from tvm_doping.bundle import Bundle
from tvm_doping.errors import BenchError, TargetError, UnfinishedWarning
from tvm_doping.manifest import Compression, LayerReport, RoundingError, TensorSpec

VERBS = (
    "train",
    "compile",
    "tune",
    "inspect",
    "run",
    "bench",
    "bench-matrix",
    "bench-choice",
    "bench-predict",
    "bench-tuning",
    "records",
    "farm",
    "targets",
)


def tvm_doping_(capsys, *arguments):
    """Exit code, standard output and standard error of the command in this process."""
    try:
        cli.main([str(argument) for argument in arguments])
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def refused(capsys, *arguments):
    """The one line that a refused command prints; nothing else is printed."""
    code, out, err = tvm_doping_(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("tvm-doping: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_what_every_option_does(capsys, verb):
    code, out, _ = tvm_doping_(capsys, verb, "--help")
    assert code == 0
    options = re.findall(r"^  (?:-\w, )?--[\w-]+.*(?:\n {20,}.*)*", out, re.MULTILINE)
    assert len(options) == out.count("\n  --") + out.count("\n  -h, --")
    for option in options:
        assert re.search(r"  +[A-Z(lf].{10}", option), f"no help for {option!r}"


def test_help_lists_every_verb_with_a_whole_sentence(capsys):
    code, out, _ = tvm_doping_(capsys, "--help")
    assert code == 0
    for verb in VERBS:
        assert re.search(rf"^  {verb} +\S.*[^.]\.$", out, re.MULTILINE), f"{verb} is cut short"


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_nothing_heavy_and_is_instant(verb):
    code = (
        "import sys; sys.argv = ['tvm-doping', *sys.argv[1:], '--help']\n"
        "import atexit; atexit.register(lambda: print('HEAVY', sorted("
        "{'torch', 'tvm', 'tvm_ffi', 'numpy', 'scipy', 'safetensors'} & set(sys.modules))))\n"
        "from tvm_doping.cli import main; main()"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *verb.split()], capture_output=True, text=True, check=True
    )
    assert "HEAVY []" in done.stdout
    assert time.perf_counter() - start < 3.0  # 0.2 s on a quiet machine


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "tvm_doping", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == tvm_doping.__version__


def test_a_mistake_is_one_line_and_exit_code_2_without_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tvm_doping", "run", str(tmp_path), "--text", "a"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("tvm-doping: ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch, saved):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(Bundle, "load", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["inspect", str(saved)])


def test_targets_says_what_this_machine_is(capsys):
    code, out, _ = tvm_doping_(capsys, "targets")
    assert code == 0
    assert all(name in out for name in ("x86-64-v2", "x86-64-v3", "x86-64-v4", "auto (this machine)"))


def test_targets_works_where_no_target_fits(capsys, monkeypatch):
    from tvm_doping import targets

    monkeypatch.setattr(targets, "cpu_features", lambda: frozenset({"neon"}))
    code, out, _ = tvm_doping_(capsys, "targets")
    assert code == 0
    assert "auto: none" in out and "lacks" in out


def test_inspect_shows_layers_sizes_and_reasons(capsys, bundle, tmp_path):
    layer = LayerReport(
        name="lstm.0",
        op="lstm",
        structure="kronecker 20x130 (x) 130x10 + S of 84,500",
        shape=(2600, 1300),
        kernel="lstm perm32",
        format="perm32",
        reason="AVX-512 and 2 nonzeros a stripe",
        bytes=2**20,
        dense_bytes=20 * 2**20,
        parameters=1000,
        dense_parameters=25_000,
    )
    dense = LayerReport(
        name="output", op="linear", bytes=400, dense_bytes=400, parameters=100, dense_parameters=100
    )
    manifest = bundle.manifest.model_copy(
        update={
            "layers": (layer, dense),
            "compression": Compression(by_parameters=24.0, by_bytes=19.0),
            "metrics": {"test_perplexity": 82.14},
        }
    )
    made = Bundle(manifest=manifest, library=bundle.library, weights=bundle.weights, golden=bundle.golden)
    code, out, _ = tvm_doping_(capsys, "inspect", made.save(tmp_path / "b"))
    assert code == 0
    flat = " ".join(out.split())
    for text in (
        "T x N x 8",
        "perm32",
        "24.0x by parameters, 19.0x by bytes stored, all layers",
        "25.0x by parameters, 20.0x by bytes stored, 1 doped layers alone",
        "1.0 MiB",
        "AVX-512 and 2",
        "82.14",
        "step by step yes",
        "runs here yes",
        "x86-64-v2",
    ):
        assert text in flat, text


def test_inspect_shows_what_was_weighed_and_what_narrow_values_cost(capsys, bundle, tmp_path):
    from scipy import sparse as sp

    from tvm_doping import schedules, structures, targets

    rng = np.random.default_rng(0)
    mask = rng.random((512, 128)) < 0.04
    S = sp.csr_array((mask * rng.standard_normal(mask.shape)).astype("float32"))
    w = structures.Doped(structures.Zero(S.shape), S)
    plan = schedules.choose_lstm(w, w, reverse=False, target=targets.resolve("x86-64-v3"), precision="int8")
    assert (plan.input.sparse, plan.input.values) == ("sell16", "int8")
    layer = LayerReport(
        name="lstm.0",
        op="lstm",
        format="sell16",
        values="int8",
        rounding=0.002,
        plan=json.loads(plan.to_json()),
    )
    manifest = bundle.manifest.model_copy(
        update={
            "layers": (layer,),
            "precision": "int8",
            "precision_error": {"output.y": RoundingError(max_abs=0.0123, relative=0.0045)},
        }
    )
    made = Bundle(manifest=manifest, library=bundle.library, weights=bundle.weights, golden=bundle.golden)
    code, out, _ = tvm_doping_(capsys, "inspect", made.save(tmp_path / "b"))
    assert code == 0 and "sell16 in int8, 2.0e-03 off" in " ".join(out.split())
    rows = [line.split() for line in out.splitlines() if line.startswith((" W_ih ", " W_hh "))]
    for name, product in (("W_ih", plan.input), ("W_hh", plan.recurrent)):
        shown = [row for row in rows if row[0] == name]
        assert len(shown) == len(product.alternatives) > 10
        assert [row[:4] for row in shown if "*" in row] == [[name, "sell16", "int8", "*"]]
        for row, other in zip(shown, product.alternatives, strict=True):
            assert row[1] == other.format and f"{other.cycles:,}" in row
            assert f"{other.cycles / 3e3:.1f}" in row and " ".join(other.reason.split()) in " ".join(row)
    assert "cost of int8, output y 0.012 at most, 0.0045 relative" in " ".join(out.split())


def test_inspect_shows_a_bundle_for_another_machine(capsys, bundle, tmp_path):
    target = bundle.manifest.target.model_copy(update={"name": "x86-64-v9", "features": ("avx1024f",)})
    manifest = bundle.manifest.model_copy(update={"target": target, "golden_error": None})
    made = Bundle(manifest=manifest, library=b"never loaded", weights=bundle.weights, golden=bundle.golden)
    path = made.save(tmp_path / "b")
    code, out, _ = tvm_doping_(capsys, "inspect", path)
    assert code == 0 and "lacks avx1024f" in out and "not run when compiled" in out
    assert "avx1024f" in refused(capsys, "run", path, "--text", "a")


def test_inspect_json_is_the_manifest(capsys, saved):
    code, out, _ = tvm_doping_(capsys, "inspect", saved, "--json")
    assert code == 0
    assert json.loads(out) == json.loads((saved / "bundle.json").read_text())


def test_inspect_verifies_every_variant_and_shows_them(capsys, bundle, saved, tmp_path):
    code, out, _ = tvm_doping_(capsys, "inspect", saved, "--verify")
    said = " ".join(out.split())  # lines end where the terminal does
    assert code == 0 and "nothing of it was run" in said and "ELF for x86_64" in said
    target = bundle.manifest.target.model_copy(update={"name": "x86-64-v9", "features": ("avx1024f",)})
    manifest = bundle.manifest.model_copy(update={"target": target})
    other = Bundle(manifest=manifest, library=b"never loaded", weights=bundle.weights, golden=bundle.golden)
    both = Bundle.join([bundle, other]).save(tmp_path / "both")
    code, out, _ = tvm_doping_(capsys, "inspect", both)
    assert code == 0 and "no: lacks avx1024f" in out and "yes: this one" in out
    code, out, _ = tvm_doping_(capsys, "inspect", both, "--target", "x86-64-v9")
    assert code == 0 and "below: x86-64-v9" in out
    assert "lib.x86-64-v9.so: not a 64-bit" in refused(capsys, "inspect", both, "--verify")
    assert "code for nothing" in refused(capsys, "inspect", both, "--target", "nothing")


def test_inspect_of_anything_else(capsys, tmp_path):
    assert "no folder" in refused(capsys, "inspect", tmp_path / "none")
    assert "neither" in refused(capsys, "inspect", tmp_path)


@pytest.fixture
def x(tmp_path):
    xs = np.random.default_rng(3).standard_normal((6, 2, WIDTH), np.float32)
    np.save(tmp_path / "x.npy", xs)
    return xs


@pytest.mark.usefixtures("x")
def test_run_writes_npy(capsys, saved, x, tmp_path):
    code, out, _ = tvm_doping_(
        capsys, "run", saved, tmp_path / "x.npy", "--out", tmp_path / "y.npy", "--verify"
    )
    assert code == 0 and "y: 6 x 2 x 5 float32" in out
    expected, _ = reference(Bundle.load(saved).weights, x, np.zeros((2, OUT), np.float32))
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)
    assert not list(tmp_path.glob(".y.npy*"))


def test_run_names_the_target_whose_code_runs(capsys, saved, x, tmp_path):
    np.save(tmp_path / "x.npy", x)
    words = ["run", saved, tmp_path / "x.npy", "--target"]
    code, out, _ = tvm_doping_(capsys, *words, "x86-64-v2")
    assert code == 0 and "by the code for x86-64-v2\n" in out
    assert "code for x86-64-v3" in refused(capsys, *words, "x86-64-v3")


def test_run_goes_on_from_the_state_it_wrote(capsys, saved, x, tmp_path):
    np.savez(tmp_path / "a.npz", x=x[:2])
    assert tvm_doping_(capsys, "run", saved, tmp_path / "a.npz", "--out", tmp_path / "ya.npz")[0] == 0
    with np.load(tmp_path / "ya.npz") as first:
        np.savez(tmp_path / "b.npz", x=x[2:], **{"state.carry": first["state.carry"]})
    assert tvm_doping_(capsys, "run", saved, tmp_path / "b.npz", "--out", tmp_path / "yb.npz")[0] == 0
    expected, _ = reference(Bundle.load(saved).weights, x, np.zeros((2, OUT), np.float32))
    with np.load(tmp_path / "yb.npz") as second:
        np.testing.assert_allclose(second["y"], expected[2:], atol=1e-5)


class Evil:
    """What a pickle may hold."""

    def __reduce__(self):
        return print, ("a pickle was run",)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.npy", lambda path: None, "no such file"),
        ("x.npy", lambda path: path.write_bytes(b""), "NumPy arrays"),
        ("x.npz", lambda path: path.write_bytes(b"PK\3\4 broken"), "NumPy arrays"),
        ("x.npy", lambda path: np.save(path, np.array([Evil()], object)), "NumPy arrays"),
        ("x.npz", lambda path: np.savez(path, x=np.array([Evil()], object)), "NumPy arrays"),
        ("x.npz", lambda path: np.savez(path, z=np.zeros(3)), "arrays named x; got z"),
        ("x.npz", lambda path: np.savez(path), "arrays named x"),
        ("x.npy", lambda path: np.save(path, np.zeros((2, 1, WIDTH))), "float32"),
        ("x.npy", lambda path: np.save(path, np.zeros((1, WIDTH), np.float32)), "time axis"),
        ("x.txt", lambda path: path.write_text("words"), "a model of numbers"),
        ("x.txt", lambda path: path.write_bytes(b"\xff\xfe\x00"), "UTF-8"),
        ("x.txt", lambda path: path.mkdir(), "text file"),
    ],
)
def test_run_refuses_files_that_do_not_fit(capsys, saved, tmp_path, name, write, message):
    write(tmp_path / name)
    assert message in refused(capsys, "run", saved, tmp_path / name)


def test_run_needs_one_input_and_a_good_name(capsys, saved, tmp_path, x):
    assert "neither" in refused(capsys, "run", saved)
    assert "both" in refused(capsys, "run", saved, tmp_path / "x.npy", "--text", "a")
    assert ".npy or .npz" in refused(capsys, "run", saved, tmp_path / "x.npy", "--out", tmp_path / "y.csv")
    assert len(x) == 6


def test_run_cannot_write_there(capsys, saved, tmp_path, x):
    (tmp_path / "file").write_text("")
    code, _, err = tvm_doping_(capsys, "run", saved, tmp_path / "x.npy", "--out", tmp_path / "file" / "y.npy")
    assert code == 2 and "--out" in err and len(x) == 6


class FakeSession:
    """A language model that finds the token after the last one seen likeliest: 0 -> 1 -> 2 -> 0."""

    def __init__(self, bundle):
        self.target = bundle.manifest.target.name
        self.bundle, self.state, self.sizes = bundle, {"h": np.zeros((1, 1), np.float32)}, []

    def run(self, tokens):
        self.sizes.append(len(tokens))
        return np.log(np.array([[0.1, 0.6, 0.3], [0.3, 0.1, 0.6], [0.6, 0.3, 0.1]], np.float32))[tokens]

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        pass


@pytest.fixture
def speaker(monkeypatch, bundle):
    manifest = bundle.manifest.model_copy(
        update={
            "tokens": "words",
            "inputs": (TensorSpec(name="tokens", shape=("T", "N"), dtype="int64", below=3),),
            "outputs": (TensorSpec(name="y", shape=("T", "N", 3), dtype="float32"),),
        }
    )
    made = Bundle(
        manifest=manifest,
        library=b"",
        weights=bundle.weights,
        golden=bundle.golden,
        vocabulary=("a", "[b]", "<unk>"),
    )
    session = FakeSession(made)
    monkeypatch.setattr("tvm_doping.runtime.load", lambda *_args, **_kwargs: session)
    return session


@pytest.mark.parametrize("repeats", [1, 200])
def test_run_reads_text_and_prints_perplexity(capsys, speaker, tmp_path, repeats):
    text = "a [b] other " * repeats
    code, out, _ = tvm_doping_(capsys, "run", "any", "--text", text, "--out", tmp_path / "y.npz")
    assert code == 0
    assert f"{3 * repeats:,} tokens, perplexity {1 / 0.6:.2f}" in out
    assert "next: 'a' 60.0%, '[b]' 30.0%, '<unk>' 10.0%" in out
    assert sum(speaker.sizes) == 3 * repeats and max(speaker.sizes) <= 256
    with np.load(tmp_path / "y.npz") as written:
        assert written["y"].shape == (3 * repeats, 1, 3)


def test_run_reads_a_text_file(capsys, speaker, tmp_path):
    (tmp_path / "t.txt").write_text("[b]")
    code, out, _ = tvm_doping_(capsys, "run", "any", tmp_path / "t.txt")
    assert code == 0 and "perplexity" not in out and "next: '<unk>' 60.0%" in out
    assert speaker.sizes == [1]


def says(monkeypatch, speaker, outputs, function):
    """The speaker returns `function` of its log-probabilities (T, N, 3) instead, outputs: (name, shape, dtype) of each."""
    specs = tuple(TensorSpec(name=name, shape=shape, dtype=dtype) for name, shape, dtype in outputs)
    made = speaker.bundle
    manifest = made.manifest.model_copy(update={"outputs": specs})
    speaker.bundle = Bundle(manifest=manifest, library=b"", weights={}, golden={}, vocabulary=made.vocabulary)
    logits = speaker.run
    monkeypatch.setattr(speaker, "run", lambda tokens: function(logits(tokens)))


@pytest.mark.parametrize("axis", [(), (1,)])
def test_run_reads_indices(capsys, monkeypatch, speaker, axis):
    spec = ("y", ("T", "N", *axis), "int64")
    says(monkeypatch, speaker, [spec], lambda y: y.argmax(-1).reshape(*y.shape[:2], *axis))
    code, out, _ = tvm_doping_(capsys, "run", "any", "--text", "a [b] other a a")
    assert code == 0 and "5 tokens, 75.0% of those that follow are the one predicted" in out
    assert "\nnext: '[b]'\n" in out


def test_run_reads_the_largest_logits(capsys, monkeypatch, speaker):
    specs = [("v", ("T", "N", 2), "float32"), ("i", ("T", "N", 2), "int64")]

    def top(y):
        at = np.argsort(-y, axis=-1)[..., :2]
        return np.take_along_axis(y, at, -1), at

    says(monkeypatch, speaker, specs, top)
    code, out, _ = tvm_doping_(capsys, "run", "any", "--text", "a [b] other a other")
    assert code == 0 and "5 tokens, 100.0% of those that follow are one of the 2 predicted" in out
    assert f"next: 'a' ({np.log(0.6):.2f}), '[b]' ({np.log(0.3):.2f})" in out


def test_run_reads_probabilities(capsys, monkeypatch, speaker):
    says(monkeypatch, speaker, [("y", ("T", "N", 3), "float32")], np.exp)
    layer = LayerReport(name="output", op="linear", plan={"head": "softmax"})
    manifest = speaker.bundle.manifest.model_copy(update={"layers": (layer,)})
    monkeypatch.setattr(speaker, "bundle", replace(speaker.bundle, manifest=manifest))
    code, out, _ = tvm_doping_(capsys, "run", "any", "--text", "a [b] other")
    assert code == 0 and f"perplexity {1 / 0.6:.2f}" in out and "next: 'a' 60.0%" in out


@pytest.mark.parametrize(
    ("shape", "dtype"), [(("T", "N", 4), "float32"), (("N",), "int64"), (("T", "N"), "float32")], ids=str
)
def test_run_refuses_a_text_for_outputs_that_say_nothing_of_tokens(
    capsys, monkeypatch, speaker, shape, dtype
):
    says(monkeypatch, speaker, [("y", shape, dtype)], lambda y: y)
    assert "logits of its 3 tokens, or indices" in refused(capsys, "run", "any", "--text", "a")


@pytest.mark.parametrize("text", ["", "   "])
@pytest.mark.usefixtures("speaker")
def test_run_refuses_an_empty_text(capsys, text):
    assert "at least one token" in refused(capsys, "run", "any", "--text", text)


def test_train_passes_what_was_said_and_shows_the_perplexities(capsys, monkeypatch, tmp_path):
    said = []

    def train(*args, **kwargs):
        said.append((args, kwargs))
        return {"test_perplexity": 115.25, "valid_perplexity": None, "finished": True}

    fake = types.ModuleType("tvm_doping.models.train")
    fake.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tvm_doping.models.train", fake)
    words = ["train", "--recipe", "lm-tiny", "--set", "model.hidden=64", "--set", "doping.structure=low_rank"]
    code, out, _ = tvm_doping_(capsys, *words, "--no-resume", "--dense", "d", "--out", tmp_path)
    assert code == 0 and "test perplexity: 115.25" in out and "valid" not in out
    (args, kwargs) = said[0]
    assert args == ("lm-tiny", None, tmp_path)
    overrides = {"model.hidden": 64, "doping.structure": "low_rank"}
    assert kwargs == {"resume": False, "overrides": overrides, "dense": Path("d")}
    assert "NAME=VALUE" in refused(capsys, *words, "--set", "hidden")
    assert len(said) == 1


def test_compile_saves_and_shows_the_bundle(capsys, monkeypatch, bundle, tmp_path):
    said = []
    fake = types.ModuleType("tvm_doping.build")

    def compile(run, target, **options):
        said.append((run, target, options))
        return bundle

    fake.compile = compile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tvm_doping.build", fake)
    out = tmp_path / "b"
    words = [
        "compile",
        tmp_path,
        "--out",
        out,
        "--target",
        "x86-64-v2",
        "--force",
        "format=csr",
        "--batch",
        "4",
        "--head",
        "top_k:5",
    ]
    code, printed, _ = tvm_doping_(capsys, *words)
    assert code == 0 and "compiled and checked in" in printed
    (run, target, options) = said[0]
    assert (run, target.name) == (tmp_path, "x86-64-v2")
    assert options["force"] == {"format": "csr"} and options["batch"] == 4
    assert options["head"] == "top_k:5"
    assert Bundle.load(out).library == bundle.library
    assert "x86-64-v3" in refused(capsys, "compile", tmp_path, "--target", "z80")
    assert "top_k:K" in refused(capsys, "compile", tmp_path, "--head", "best")
    assert len(said) == 1
    for names, said_of_it in (
        ("cuda-sm90,x86-64-v2", "compiled and checked (not cuda-sm90"),
        ("cuda-sm90", "compiled, not run"),
    ):
        _, printed, _ = tvm_doping_(capsys, "compile", tmp_path, "--out", out, "--target", names)
        assert said_of_it in printed


def test_bench_checks_names_before_it_starts(capsys, tmp_path):
    assert "onnxruntime-int8" in refused(capsys, "bench", tmp_path, "--baseline", "tensorflow")
    assert "lstm, model" in refused(capsys, "bench", tmp_path, "--scope", "layer")


def test_bench_passes_what_was_said(capsys, monkeypatch, tmp_path):
    from tvm_doping import bench

    said = []
    monkeypatch.setattr(bench, "run", lambda *args, **options: said.extend([*args, options]))
    monkeypatch.setattr(bench, "table", lambda results: "the table")
    monkeypatch.setattr(bench, "write", lambda results, folder: {"results": folder / "results.json"})
    words = [
        "bench",
        tmp_path,
        "--baseline",
        "openvino",
        "--steps",
        "1",
        "--seconds",
        "5",
        "--out",
        tmp_path / "o",
    ]
    code, out, _ = tvm_doping_(capsys, *words)
    assert code == 0 and "the table" in out and "results.json" in out
    (run, options) = said
    assert run == tmp_path
    assert options["baselines"] == ("openvino",) and options["steps"] == (1,)
    assert options["scopes"] == ("lstm", "model") and options["seconds"] == 5.0


@pytest.mark.parametrize("error", [BenchError, TargetError])
def test_every_error_of_the_family_is_one_line(capsys, monkeypatch, error, tmp_path):
    from tvm_doping import bench

    def fail(*_args, **_kwargs):
        raise error("what", "a\nneed", "got", "Remedy.")

    monkeypatch.setattr(bench, "run", fail)
    assert refused(capsys, "bench", tmp_path) == "tvm-doping: what: needs a need; got got. Remedy.\n"


@pytest.mark.parametrize("words", [[], ["no-such-verb"], ["run"], ["run", "b", "--no-such-option"]])
def test_wrong_usage_is_exit_code_2(capsys, words):
    code, _, _ = tvm_doping_(capsys, *words)
    assert code == 2


@pytest.mark.parametrize("place", ["file", "file/b", "run", "/proc/x/y"])
def test_compile_refuses_a_place_before_it_starts(capsys, monkeypatch, tmp_path, place):
    monkeypatch.setitem(sys.modules, "tvm_doping.build", None)  # importing it would fail
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    assert place.rpartition("/")[2] in refused(capsys, "compile", tmp_path, "--out", tmp_path / place)
    assert "--force format=csr" in refused(capsys, "compile", tmp_path, "--force", "foo")


@pytest.mark.parametrize("place", ["file", "file/b", "run", "/proc/x/y"])
def test_bench_refuses_a_place_before_it_starts(capsys, monkeypatch, tmp_path, place):
    from tvm_doping import bench

    monkeypatch.setattr(bench, "run", lambda *_args, **_options: pytest.fail("it started"))
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    assert "a folder" in refused(capsys, "bench", tmp_path, "--out", tmp_path / place)


def test_bench_help_lists_the_baselines(capsys):
    _, out, _ = tvm_doping_(capsys, "bench", "--help")
    assert all(name in out for name in ("onnxruntime-int8", "openvino", "gemv-floor"))


def test_train_refuses_a_file_as_its_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    err = refused(capsys, "train", "--recipe", "lm-tiny", "--out", tmp_path / "file")
    assert "a folder that can be written; got a file" in err


def test_a_run_that_has_no_checkpoint_yet(capsys, tmp_path):
    (tmp_path / "recipe.yaml").write_text("")
    assert "train` again" in refused(capsys, "inspect", tmp_path)


@pytest.mark.parametrize("name", ["nofile.npy", "nofile.txt"])
def test_run_names_a_missing_file(capsys, saved, tmp_path, name):
    assert "no such file" in refused(capsys, "run", saved, tmp_path / name)


def test_a_warning_is_one_line(capsys, monkeypatch, tmp_path):
    from tvm_doping import bench

    def warn(*_args, **_options):
        warnings.warn("S is dense", UnfinishedWarning, stacklevel=1)
        raise BenchError("what", "need", "got", "Remedy.")

    monkeypatch.setattr(bench, "run", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = tvm_doping_(capsys, "bench", tmp_path, "--out", tmp_path / "o")
    assert code == 2 and err.startswith("tvm-doping: warning: S is dense\n")
    assert not (tmp_path / "o").exists()
