"""Bundles: saved whole or not at all, and checked whole before any of their code is loaded."""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tvm_doping import targets
from tvm_doping.arrays import ALIGNMENT
from tvm_doping.bundle import Bundle
from tvm_doping.bundle_files import digest
from tvm_doping.document import FORMAT_VERSION
from tvm_doping.errors import BundleError
from tvm_doping.manifest import Manifest
from tvm_doping.runtime import load

FILES = ["bundle.json", "lib.so", "weights.safetensors", "golden.safetensors"]


def edit(folder, change, *, sign=True):
    """Change the manifest on disk; signed, its digest fits again, as that of a hostile bundle would."""
    path = folder / "bundle.json"
    raw = json.loads(path.read_text())
    change(raw)
    if sign:
        raw["digest"] = digest(raw)
    path.write_text(json.dumps(raw))


def weight(raw):
    return raw["variants"][0]["weights"][0]


def test_what_is_saved_is_what_is_loaded(bundle, saved):
    back = Bundle.load(saved)
    assert back.library == bundle.library
    assert list(back.weights) == list(bundle.weights) == ["W", "b"]
    for name in bundle.weights:
        np.testing.assert_array_equal(back.weights[name], bundle.weights[name])
        assert back.weights[name].ctypes.data % ALIGNMENT == 0
    np.testing.assert_array_equal(back.golden["output.y"], bundle.golden["output.y"])
    assert back.manifest == bundle.manifest
    assert back.bytes == 4 * (8 * 5 + 5)


def test_equal_arrays_are_stored_and_held_once(bundle, tmp_path):
    weights = {**bundle.weights, "W.again": bundle.weights["W"].copy()}
    manifest = bundle.manifest.model_copy(update={"weights": tuple(weights)})
    back = Bundle.load(
        Bundle(manifest=manifest, library=b"x", weights=weights, golden=bundle.golden).save(tmp_path / "b")
    )
    assert back.weights["W"] is back.weights["W.again"]
    assert back.bytes == 4 * (8 * 5 + 5)


def test_weights_come_in_the_order_of_the_manifest(bundle, tmp_path):
    turned = bundle.manifest.model_copy(update={"weights": ("b", "W")})
    back = Bundle.load(
        Bundle(manifest=turned, library=b"x", weights=bundle.weights, golden=bundle.golden).save(
            tmp_path / "b"
        )
    )
    assert list(back.weights) == ["b", "W"]  # safetensors keeps an order of its own


def test_a_vocabulary_may_hold_any_token(bundle, tmp_path):
    tokens = ("\n", "", "a b", "\u00e9", "<unk>", '"')
    made = Bundle(
        manifest=bundle.manifest,
        library=bundle.library,
        weights=bundle.weights,
        golden=bundle.golden,
        vocabulary=tokens,
    )
    assert Bundle.load(made.save(tmp_path / "b")).vocabulary == tokens


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 1, 2)])
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint16", "uint8", "bool"])
def test_arrays_keep_their_shape_and_dtype(bundle, tmp_path, shape, dtype):
    arrays = {"W": np.ones(shape, dtype), "b": np.asfortranarray(np.arange(6.0).reshape(2, 3))}
    made = Bundle(manifest=bundle.manifest, library=b"x", weights=arrays, golden=bundle.golden)
    back = Bundle.load(made.save(tmp_path / "b")).weights
    assert (back["W"].shape, back["W"].dtype) == (shape, np.dtype(dtype))
    np.testing.assert_array_equal(back["b"], arrays["b"])


def test_saving_twice_gives_the_same_bytes(bundle, tmp_path):
    one, two = bundle.save(tmp_path / "1"), bundle.save(tmp_path / "2")
    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_the_folder_and_files_follow_the_umask(saved):
    mask = os.umask(0)
    os.umask(mask)
    for path in (saved, *saved.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask


def test_saving_replaces_a_bundle_and_an_empty_folder(bundle, saved, tmp_path):
    (saved / "stale").write_text("of the bundle before")
    bundle.save(saved)
    assert sorted(os.listdir(saved)) == sorted(FILES)
    (tmp_path / "empty").mkdir()
    bundle.save(tmp_path / "empty")
    assert sorted(os.listdir(tmp_path)) == ["empty", "tiny"]  # no temporary folder is left


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_saving_never_replaces_anything_else(bundle, tmp_path, kind):
    place = tmp_path / "thesis"
    if kind == "folder":
        place.mkdir()
        (place / "chapter1.tex").write_text("years of work")
    else:
        place.write_text("years of work")
    with pytest.raises(BundleError, match="no bundle" if kind == "folder" else "a file"):
        bundle.save(place)
    assert (place / "chapter1.tex" if kind == "folder" else place).read_text() == "years of work"


def test_a_save_that_fails_leaves_the_old_bundle(bundle, saved, monkeypatch):
    before = (saved / "bundle.json").read_bytes()

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Bundle, "_write", full)
    with pytest.raises(BundleError, match="No space left"):
        bundle.save(saved)
    assert (saved / "bundle.json").read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_swap_that_fails_puts_the_old_bundle_back(bundle, saved, monkeypatch):
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(BundleError, match="Input/output error"):
        bundle.save(saved)
    assert len(calls) == 3
    assert os.listdir(saved.parent) == [saved.name]
    Bundle.load(saved)


@pytest.fixture
def never(monkeypatch):
    """Fails the test if a library is loaded at all."""

    def loaded(path):
        pytest.fail(f"{path} was loaded")

    monkeypatch.setattr("tvm_doping.opening.open_library", loaded)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "edited", "longer", "folder", "fifo"])
def test_a_damaged_file_is_refused_by_name(saved, name, damage):
    path = saved / name
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "edited":
            at = len(content) - 9
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        case "longer":
            path.write_bytes(content + b"\0")
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)  # reading one would wait for ever
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        load(saved)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "JSON object"),
        ("null", "JSON object"),
        ("{}", "format version"),
        ('{"format_version": 2}', "digest"),
        ("[" * 100_000, "JSON"),
        ("\x00\x01", "JSON"),
    ],
)
def test_a_manifest_that_is_none_is_refused(saved, text, message):
    (saved / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=message):
        load(saved)


def test_bytes_that_are_no_text_are_refused(saved):
    (saved / "bundle.json").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(BundleError, match="JSON"):
        load(saved)


def test_no_such_folder(tmp_path):
    with pytest.raises(BundleError, match=r"bundle\.json"):
        load(tmp_path / "nowhere")


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, "1", None])
def test_another_format_version_is_named_before_anything_else(saved, version):
    edit(saved, lambda raw: (raw.update(format_version=version), raw.pop("inputs")))
    with pytest.raises(BundleError, match=f"format version {FORMAT_VERSION}; got version {version!r}"):
        load(saved)


@pytest.mark.usefixtures("never")
def test_an_edited_manifest_is_refused(saved):
    edit(saved, lambda raw: raw["variants"][0].update(tolerance=10.0), sign=False)
    with pytest.raises(BundleError, match="edited contents"):
        load(saved)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(
    "name",
    [
        "../lib.so",
        "/etc/passwd",
        "sub/lib.so",
        "..",
        "",
        "lib.so\0",
        "./lib.so",
        "bundle.json",
        "LIB.SO",
        "a\\b",
    ],
)
def test_names_that_lead_elsewhere_are_refused(saved, name):
    def change(raw):
        raw["files"][name] = raw["files"]["lib.so"]

    edit(saved, change)
    with pytest.raises(BundleError, match="files"):
        load(saved)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda raw: raw["files"].pop("lib.so"), "files"),
        (lambda raw: raw.update(inputs=[]), "inputs"),
        (lambda raw: raw["variants"][0].pop("target"), "target"),
        (lambda raw: raw.update(variants=[]), "variants"),
        (lambda raw: raw["variants"].append(raw["variants"][0]), "a target.name each"),
        (lambda raw: raw["variants"][0].update(library="../lib.so"), "variants.0.library"),
        (lambda raw: raw["variants"][0].update(library="lib.so\n"), "variants.0.library"),
        (lambda raw: raw["inputs"][0].update(dtype="object"), "inputs.0.dtype"),
        (lambda raw: raw["inputs"][0].update(shape=["T", "N", -1]), "inputs.0.shape"),
        (lambda raw: raw["inputs"].append(raw["inputs"][0]), "names given once"),
        (lambda raw: raw["state"][0].update(shape=["M", 5]), "symbols of the inputs"),
        (lambda raw: raw.update(time_axis=1), "not 1"),
        (lambda raw: raw.update(time_axis=None), "not None"),
        (lambda raw: raw.update(surprise=1), "surprise"),
        (lambda raw: raw["variants"][0]["weights"].pop(), "weights.safetensors"),
        (lambda raw: weight(raw).update(key="c"), "weights.safetensors"),
        (lambda raw: weight(raw).update(name="b"), "names of arrays given once"),
        (lambda raw: weight(raw).update(shape=[5, 8]), "weights.safetensors"),
        (lambda raw: weight(raw).update(shape=[2**62, 2**62]), "weights.safetensors"),
        (lambda raw: weight(raw).update(dtype="int32"), "weights.safetensors"),
    ],
)
def test_an_impossible_manifest_is_refused_by_place(saved, change, place):
    edit(saved, change)
    with pytest.raises(BundleError, match=place):
        load(saved)


@pytest.mark.usefixtures("never")
def test_a_feature_the_cpu_lacks_is_named(saved, monkeypatch):
    monkeypatch.setattr(targets, "cpu_features", lambda: frozenset({"sse2", "ssse3"}))
    edit(
        saved,
        lambda raw: raw["variants"][0]["target"].update(
            name="x86-64-v9", features=["sse2", "avx1024f", "amx_tile"]
        ),
    )
    with pytest.raises(BundleError, match="without amx_tile, avx1024f"):
        load(saved)
    looked_at = Bundle.load(saved, any_machine=True)
    assert looked_at.manifest.target.name == "x86-64-v9"
    with pytest.raises(BundleError, match="avx1024f"):
        looked_at.session()


@pytest.mark.usefixtures("never")
def test_features_are_checked_before_the_files_are_read(saved):
    (saved / "lib.so").write_bytes(b"not even ELF")
    edit(saved, lambda raw: raw["variants"][0]["target"].update(features=["avx1024f"]))
    with pytest.raises(BundleError, match="avx1024f"):
        load(saved)


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("made", ["0.26.0", "1.0.0", ""])
def test_another_release_of_tvm_is_refused(saved, made):
    edit(saved, lambda raw: raw["versions"].update(tvm=made))
    with pytest.raises(BundleError, match="apache-tvm"):
        load(saved)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"#!/bin/sh\necho no\n", b"\0" * 4096])
def test_a_library_that_is_none_is_an_error_not_a_crash(bundle, tmp_path, content):
    made = Bundle(manifest=bundle.manifest, library=content, weights=bundle.weights, golden=bundle.golden)
    with pytest.raises(BundleError, match="library"):
        load(made.save(tmp_path / "b"))
    with pytest.raises(BundleError, match="library"):
        made.session()


def test_a_copied_bundle_is_as_good(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    assert load(tmp_path / "copy", verify=True).verify() < 1e-5


def test_a_link_to_a_bundle_is_followed(bundle, saved, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(saved)
    bundle.save(link)
    assert link.is_symlink()
    Bundle.load(link)


def test_the_manifest_survives_json(bundle):
    text = bundle.manifest.model_dump_json()
    assert Manifest.model_validate_json(text) == bundle.manifest


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """As frontend/signature.py has it."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    below: int | None = None


def test_what_build_made_becomes_a_bundle(bundle, library, tmp_path):
    signature = SimpleNamespace(
        inputs=(Tensor(name="x", shape=("T", "N", 8), dtype="float32"),),
        state=(Tensor(name="carry", shape=("N", 5), dtype="float32"),),
        outputs=(Tensor(name="y", shape=("T", "N", 5), dtype="float32"),),
        time_axis=0,
        streaming=False,
        no_stream="it looks ahead",
    )
    layer: dict[str, object] = {
        "name": "lstm.l0",
        "op": "lstm",
        "kernel": "perm32",
        "format": "perm32",
        "reason": "r",
        "rejected": ["a: b"],
    }
    layer |= {"parameters": 5, "dense_parameters": 50, "bytes": 20, "dense_bytes": 200, "plan": {"lanes": 16}}
    compiled = SimpleNamespace(
        library=library,
        records=(),
        weights=bundle.weights,
        signature=signature,
        target=targets.TARGETS["x86-64-v2"],
        layers=(layer,),
        compression={"by_parameters": 10.0, "by_bytes": 9.0},
        metrics={"test_perplexity": 100.0, "valid_perplexity": float("nan"), "finished": True},
        golden=bundle.golden,
        golden_error=float("nan"),
        precision="int8",
        precision_error={"output.y": {"max_abs": 0.02, "relative": 0.01}},
        tolerance=1e-5,
        threads=2,
        versions=bundle.manifest.versions,
    )
    made = Bundle.from_compiled(compiled, name="run", vocabulary=["a", "b"], tokens="words")  # type: ignore[arg-type]
    assert made.session(verify=True).verify() < 1e-5
    back = Bundle.load(made.save(tmp_path / "b"))
    assert (back.manifest.precision, back.manifest.threads) == ("int8", 2)
    assert back.manifest.precision_error["output.y"].relative == 0.01
    assert back.manifest.metrics == {"test_perplexity": 100.0, "valid_perplexity": None, "finished": True}
    assert back.manifest.golden_error is None
    assert (back.manifest.streaming, back.manifest.no_stream) == (False, "it looks ahead")
    assert back.manifest.layers[0].plan == {"lanes": 16}
    assert (back.vocabulary, back.manifest.tokens) == (("a", "b"), "words")
    signature.inputs = (Tensor(name="tokens", shape=("T", "N"), dtype="int64", below=9),)
    spec = Bundle.from_compiled(compiled, name="lm").manifest.inputs[0]  # type: ignore[arg-type]
    assert (spec.dtype, spec.shape, spec.below) == ("int64", ("T", "N"), 9)
    assert all(array.ctypes.data % ALIGNMENT == 0 for array in made.weights.values())


def test_a_bundle_is_named_in_one_line(bundle: Bundle, tmp_path: Path) -> None:
    assert repr(bundle) == f"<Bundle {bundle.manifest.name!r} for {bundle.manifest.target.name}, in memory>"
    assert str(tmp_path / "b") in repr(Bundle.load(bundle.save(tmp_path / "b")))
