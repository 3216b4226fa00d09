"""Bundles for several targets: shared arrays stored once, the best variant chosen, and all of it checked without running it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tvm_doping
from tests.bundle.conftest import make_bundle
from tests.bundle.test_bundle import edit
from tvm_doping import gpu, targets
from tvm_doping.bundle import Bundle
from tvm_doping.bundle_files import digest
from tvm_doping.document import share, stored_keys
from tvm_doping.elf import SharedLibrary
from tvm_doping.errors import BundleError, TargetError
from tvm_doping.fitting import choose_variant
from tvm_doping.manifest import LayerReport, TargetSpec
from tvm_doping.runtime import load
from tvm_doping.verifying import verify

LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2")
X = np.ones((3, 2, 8), np.float32)


def variant(library: bytes, name: str, **changes: np.ndarray) -> Bundle:
    """The tiny model of conftest as if it were compiled for a target; its code needs no more than x86-64-v2."""
    made = make_bundle(library, target=TargetSpec(name=name, features=targets.TARGETS[name].features))
    return replace(made, weights={**made.weights, **changes}, targets=())


@pytest.fixture
def fat(library) -> Bundle:
    """For three targets; that for x86-64-v2 has another bias, by which one sees which of them runs."""
    parts = [variant(library, name) for name in ("x86-64-v3", "x86-64-v2", "x86-64-v4")]
    parts[1].weights["b"][...] += 1  # type: ignore[index]
    return Bundle.join(parts)


def have(monkeypatch, name: str) -> None:
    """Make this CPU one of that level."""
    monkeypatch.setattr(targets, "cpu_features", lambda: frozenset(targets.TARGETS[name].features))


def test_the_best_variant_that_the_cpu_can_run_is_taken_and_named(fat, tmp_path, monkeypatch):
    folder = fat.save(tmp_path / "b")
    assert sorted(path.name for path in folder.glob("lib*")) == sorted(f"lib.{name}.so" for name in LEVELS)
    outputs = {}
    for name in reversed(LEVELS):
        have(monkeypatch, name)
        session = load(folder)
        assert session.target == name and session.bundle.targets == LEVELS
        outputs[name] = session.run(X)
    np.testing.assert_array_equal(outputs["x86-64-v4"], outputs["x86-64-v3"])
    np.testing.assert_allclose(outputs["x86-64-v2"][0], outputs["x86-64-v3"][0] + 1, atol=1e-5)
    have(monkeypatch, "x86-64-v4")
    assert load(folder, target="x86-64-v2").target == "x86-64-v2"
    with pytest.raises(BundleError, match="code for x86-64-v4-bf16; got code for x86-64-v4, x86-64-v3"):
        load(folder, target="x86-64-v4-bf16")
    have(monkeypatch, "x86-64-v3")
    with pytest.raises(BundleError, match="without avx512bw"):
        load(folder, target="x86-64-v4")


def test_where_none_runs_each_says_what_it_needs(fat, tmp_path, monkeypatch):
    folder = fat.save(tmp_path / "b")
    monkeypatch.setattr(targets, "cpu_features", lambda: frozenset({"asimd"}))
    with pytest.raises(BundleError, match="x86-64-v2 needs cmov"):
        load(folder)
    assert Bundle.load(folder, any_machine=True).manifest.target.name == "x86-64-v4"


def test_what_a_bundle_for_gpus_lacks_is_told_in_words(monkeypatch):
    """Also where a CPU could have run it, and where a hostile manifest names a GPU that there is none of."""
    have(monkeypatch, "x86-64-v2")
    specs = {
        n: TargetSpec(name=n, features=targets.TARGETS[n].features)
        for n in ("cuda-sm90", "cuda-sm80", "x86-64-v4")
    }
    monkeypatch.setattr(gpu, "compute_capability", lambda: "no driver of NVIDIA's (libcuda.so.1)")
    with pytest.raises(
        BundleError, match=r"needs an NVIDIA GPU of compute capability 8\.0 or later.*no driver"
    ):
        choose_variant("tiny", [specs["cuda-sm90"], specs["cuda-sm80"]])
    with pytest.raises(
        BundleError, match=r"cuda-sm90 needs an NVIDIA GPU of compute capability 9\.0; x86-64-v4 needs abm"
    ):
        choose_variant("tiny", [specs["cuda-sm90"], specs["x86-64-v4"]])
    monkeypatch.setattr(gpu, "compute_capability", lambda: (8, 6))
    assert choose_variant("tiny", [specs["cuda-sm90"], specs["cuda-sm80"]]) == 1
    with pytest.raises(
        BundleError, match=r"9\.0 or later, and its driver; got a GPU of compute capability 8\.6"
    ):
        choose_variant("tiny", [specs["cuda-sm90"]])
    with pytest.raises(BundleError, match="GPU"):
        choose_variant("tiny", [TargetSpec(name="cuda-x", features=("nvidia-x",))])


def test_the_target_that_auto_is_here_goes_before_a_better_one(monkeypatch):
    have(monkeypatch, "x86-64-v4-bf16")
    specs = [TargetSpec(name=n, features=targets.TARGETS[n].features) for n in ("x86-64-v4-bf16", *LEVELS)]
    assert specs[choose_variant("b", specs)].name == "x86-64-v4"
    specs.pop(1)
    assert specs[choose_variant("b", specs)].name == "x86-64-v4-bf16"


def test_equal_arrays_are_stored_once(fat, tmp_path):
    folder = fat.save(tmp_path / "b")
    document = json.loads((folder / "bundle.json").read_text())
    keys = {v["target"]["name"]: [array["key"] for array in v["weights"]] for v in document["variants"]}
    assert keys["x86-64-v4"] == keys["x86-64-v3"] == ["W", "b"]
    assert keys["x86-64-v2"] == ["W", "x86-64-v2/b"]
    assert (folder / "weights.safetensors").stat().st_size < 4 * (8 * 5 + 2 * 5) + 500


def test_a_bundle_read_from_a_folder_is_saved_whole(fat, tmp_path):
    one = fat.save(tmp_path / "1")
    two = Bundle.load(one).save(tmp_path / "2")
    for path in one.iterdir():
        assert (two / path.name).read_bytes() == path.read_bytes()
    alone = Bundle.load(one).variants[2]
    assert Bundle.load(alone.save(tmp_path / "3")).targets == ("x86-64-v2",)
    assert (tmp_path / "3" / "lib.so").exists()


def test_only_bundles_of_one_model_are_joined(library):
    one, two = variant(library, "x86-64-v3"), variant(library, "x86-64-v2")
    with pytest.raises(BundleError, match="each for another target"):
        Bundle.join([one, one])
    other = replace(two, manifest=two.manifest.model_copy(update={"name": "other"}))
    with pytest.raises(BundleError, match="the same name"):
        Bundle.join([one, other])


def test_a_bundle_of_version_1_still_loads(bundle, saved):
    raw = json.loads((saved / "bundle.json").read_text())
    (only,) = raw.pop("variants")
    assert only.pop("library") == "lib.so" and only.pop("golden")
    old = {**raw, **only, "format_version": 1, "weights": [array["name"] for array in only["weights"]]}
    old["digest"] = digest(old)
    (saved / "bundle.json").write_text(json.dumps(old))
    back = Bundle.load(saved)
    assert back.manifest == bundle.manifest and list(back.weights) == ["W", "b"]
    assert load(saved, verify=True).target == "x86-64-v2"
    old["weights"] = ["W", "c"]
    old["digest"] = digest(old)
    (saved / "bundle.json").write_text(json.dumps(old))
    with pytest.raises(BundleError, match="weights"):
        Bundle.load(saved)


def test_targets_are_named_once_each():
    assert [target.name for target in targets.several(["x86-64-v2", "x86-64-v3"])] == [
        "x86-64-v2",
        "x86-64-v3",
    ]
    assert [target.name for target in targets.several("x86-64-v2")] == ["x86-64-v2"]
    for wrong in ([], ["x86-64-v2", "x86-64-v2"], ["z80"]):
        with pytest.raises(TargetError):
            targets.several(wrong)


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), max_size=3), max_size=4))
def test_what_is_shared_is_what_was_given(variants):
    arrays = [{name: np.full((2, value), value, "int32") for name, value in v.items()} for v in variants]
    kept, tables = share((f"t{i}", own) for i, own in enumerate(arrays))
    assert len({(a.shape, a.tobytes()) for a in kept.values()}) == len(kept)
    assert set(stored_keys(tables)) == set(kept)
    for own, table in zip(arrays, tables, strict=True):
        assert [array.name for array in table] == list(own)
        for array in table:
            np.testing.assert_array_equal(kept[array.key], own[array.name])
            assert array.shape == own[array.name].shape


def test_verify_runs_none_of_the_code(fat, tmp_path, monkeypatch):
    folder = fat.save(tmp_path / "b")
    monkeypatch.setattr("tvm_doping.opening.open_library", lambda path: pytest.fail("loaded"))
    monkeypatch.setattr(targets, "cpu_features", frozenset)  # nor does the CPU matter
    facts = dict(verify(folder))
    for name in LEVELS:
        assert "ELF for x86_64" in facts[f"{name}: lib.{name}.so"]
        assert f"{name}: arrays" in facts


def test_verify_looks_at_every_variant_and_lists_all_faults(fat, library, tmp_path):
    broken = replace(variant(library, "x86-64-v2"), library=library[:3000])
    arm = replace(
        variant(library, "x86-64-v4"), library=library[:18] + (183).to_bytes(2, "little") + library[20:]
    )
    folder = Bundle.join([variant(library, "x86-64-v3"), broken, arm]).save(tmp_path / "b")
    assert load(folder, target="x86-64-v3").target == "x86-64-v3"  # what runs is in order
    with pytest.raises(BundleError, match=r"x86-64-v4: .*code for aarch64.*x86-64-v2: lib\.x86-64-v2\.so"):
        verify(folder)
    (folder / "lib.x86-64-v2.so").write_bytes(library)
    with pytest.raises(BundleError, match=r"lib\.x86-64-v2\.so"):
        load(folder, target="x86-64-v3")  # of another variant, and yet not what the manifest says


def test_verify_compares_layers_tokens_and_golden_values(bundle, tmp_path):
    layer = {"name": "W", "op": "linear", "bytes": 3}
    manifest = bundle.manifest.model_copy(
        update={"layers": (LayerReport.model_validate(layer),), "tokens": "words"}
    )
    weights = {"W.a": np.ones(2, np.float32), "b": bundle.weights["b"]}
    golden = {**bundle.golden, "output.y": np.full_like(bundle.golden["output.y"], np.inf)}
    made = replace(
        bundle,
        manifest=manifest.model_copy(update={"weights": ("W.a", "b")}),
        weights=weights,
        golden=golden,
        vocabulary=("a",),
    )
    with pytest.raises(BundleError) as error:
        verify(made.save(tmp_path / "b"))
    for word in (
        "layer W of 3 bytes has arrays of 8",
        "golden output.y is not finite",
        "1 tokens, for inputs below None",
    ):
        assert word in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(bundle, tmp_path, value):
    weights = {"W": bundle.weights["W"], "lstm.l0.bias": np.full(5, value, np.float32)}
    names = bundle.manifest.model_copy(update={"weights": tuple(weights)})
    layered = names.model_copy(update={"layers": (LayerReport(name="lstm.l0", op="lstm"),)})
    masked = replace(bundle, manifest=names, weights=weights).save(tmp_path / "mask")
    if np.isnan(value):
        with pytest.raises(BundleError, match=r"lstm\.l0\.bias"):
            Bundle.load(masked)
    else:
        Bundle.load(
            masked
        )  # a constant of no layer, as the mask of an attention: minus infinity is what it is made of
    with pytest.raises(BundleError, match=r"5 of 5 NaN or infinite"):
        Bundle.load(replace(bundle, manifest=layered, weights=weights).save(tmp_path / "layer"))


@pytest.mark.parametrize("name", ["lib.so", "weights.safetensors", "golden.safetensors", "bundle.json"])
def test_links_out_of_the_bundle_are_refused(saved, tmp_path, name):
    outside = tmp_path / "outside"
    (saved / name).rename(outside)
    (saved / name).symlink_to(outside)
    with pytest.raises(BundleError, match="symbolic link"):
        Bundle.load(saved)
    (saved / name).unlink()
    outside.rename(saved / f"{name}.1")
    (saved / name).symlink_to(f"{name}.1")
    Bundle.load(saved)


def test_the_golden_run_must_have_the_shapes_of_the_signature(saved):
    edit(saved, lambda raw: raw["state"][0].update(shape=["N", 10**15]))  # nor is such a state ever allocated
    with pytest.raises(BundleError, match="golden values"):
        Bundle.load(saved)


def test_a_library_is_read_without_loading_it(library):
    read = SharedLibrary.read(library)
    assert read.machine == "x86_64" and "__tvm_ffi__library_bin" in read.defines and not read.paths
    with pytest.raises(ValueError, match="ELF"):
        SharedLibrary.read(b"MZ" + library)


@pytest.mark.slow
def test_a_model_is_imported_once_and_compiled_for_several_targets(tmp_path, monkeypatch):
    import torch
    from torch import nn

    from tvm_doping.frontend import import_model

    torch.manual_seed(0)
    model = tvm_doping.dope(nn.LSTM(16, 32), compression=4).eval()
    tvm_doping.models.close_masks(model)
    imported = []

    def counted(*arguments, **options):
        imported.append(arguments)
        return import_model(*arguments, **options)

    monkeypatch.setattr("tvm_doping.reading.import_model", counted)
    bundle = tvm_doping.compile(model, target=["x86-64-v2", "x86-64-v3", "x86-64-v4"], dump=tmp_path / "dump")
    assert bundle.targets == LEVELS and len(imported) == 1
    assert sorted(path.name for path in (tmp_path / "dump").iterdir()) == sorted(LEVELS)
    folder = bundle.save(tmp_path / "b")
    parts = bundle.variants
    apart = sum(part.bytes for part in parts)
    assert (folder / "weights.safetensors").stat().st_size < apart
    verify(folder)
    x = np.random.default_rng(0).standard_normal((7, 2, 16)).astype("float32")
    results = {}
    for name in LEVELS:
        if not targets.missing_features(targets.TARGETS[name].features):
            session = load(folder, target=name, verify=True)
            results[name] = session.run(x)[0]
    one, *others = results.values()
    for other in others:
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="needs g++-aarch64-linux-gnu")
def test_arm_and_x86_in_one_bundle(tmp_path, monkeypatch):
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = tvm_doping.dope(nn.LSTM(8, 16), compression=3).eval()
    tvm_doping.models.close_masks(model)
    bundle = tvm_doping.compile(model, target=["cortex-a72", "x86-64-v2"])
    folder = bundle.save(tmp_path / "b")
    assert load(folder, verify=True).target == "x86-64-v2"
    facts = dict(verify(folder))
    assert "ELF for aarch64" in facts["cortex-a72: lib.cortex-a72.so"]
    assert "ELF for x86_64" in facts["x86-64-v2: lib.x86-64-v2.so"]
    monkeypatch.setattr(targets, "cpu_features", lambda: frozenset(targets.TARGETS["cortex-a72"].features))
    assert Bundle.load(folder).manifest.target.name == "cortex-a72"
