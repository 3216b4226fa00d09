"""Recipes: those that come along are valid, overrides reach every field, and mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from tests.models.conftest import fields
from tvm_doping.errors import RecipeError
from tvm_doping.models import LanguageModel, Recipe, dope, extract, load_recipe, recipe_names
from tvm_doping.models.recipe import dump_recipe
from tvm_doping.models.tasks import TASKS, TaskName
from tvm_doping.models.tasks.language_model import ModelRecipe


def test_the_recipes_that_come_along() -> None:
    models = ("lm-tiny", "lm-small", "lm-medium", "lm-large", "intent", "mt", "forecast")
    assert recipe_names() == sorted(f"{model}{kind}" for model in models for kind in ("", "-dense"))
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name and (recipe.doping is None) == name.endswith("-dense")


@pytest.mark.parametrize("name", ["lm-tiny", "lm-small", "lm-medium"])
def test_their_compression_holds(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.doping is not None and isinstance(recipe.model, ModelRecipe)
    model = LanguageModel(100, **recipe.model.model_dump(exclude={"init_radius", "awd"}))
    dope(model, **recipe.doping.model_dump(exclude={"anneal", "cmr"}))
    doped = extract(model)
    assert len(doped) == 2 * recipe.model.layers
    for structure in doped.values():
        size = structure.shape[0] * structure.shape[1]
        assert size / structure.parameters == pytest.approx(recipe.doping.compression, rel=1e-3)


def test_doped_and_dense_differ_only_in_doping_and_schedule() -> None:
    for size in ("tiny", "small", "medium", "large"):
        doped, dense = load_recipe(f"lm-{size}"), load_recipe(f"lm-{size}-dense")
        assert doped.model == dense.model and doped.data == dense.data
        schedule = {key: getattr(dense.train, key) for key in ("epochs", "hold", "decay")}
        assert (
            doped.train.model_copy(update=schedule) == dense.train
            and doped.train.epochs <= dense.train.epochs
        )


def test_every_field_has_a_help_line() -> None:
    def look(model: Any) -> None:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            inner = [
                t
                for t in (field.annotation, *getattr(field.annotation, "__args__", ()))
                if hasattr(t, "model_fields")
            ]
            for part in inner:
                look(part)

    look(Recipe)
    for task in TASKS.values():
        look(task.data_recipe)
        look(task.model_recipe)


def test_recipes_name_the_tasks_there_are() -> None:
    assert get_args(TaskName) == tuple(TASKS)


def test_the_resolved_recipe_reads_back(tmp_path: Path) -> None:
    recipe = load_recipe("lm-small", {"train.epochs": "3", "doping.factors": "[10, 20]"})
    assert recipe.train.epochs == 3 and recipe.doping is not None and recipe.doping.factors == (10, 20)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert load_recipe(recipe, {"doping": None}).doping is None


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        ({"train.epoch": 3}, r"no key train\.epoch: did you mean train\.epochs\?"),
        ({"hidden": 3}, r"no key hidden: did you mean model\.hidden\?"),
        ({"doping.anneal.stop": 3}, r"no key doping\.anneal\.stop"),
        ({"train.epochs": 0}, r"train\.epochs"),
        ({"train.epochs": "many"}, "many"),
        ({"nonsense.deeply": 3}, "nonsense"),
        ({"doping.compression": 1}, r"doping\.compression"),
        ({"doping.structure": "circulant"}, "kronecker"),
        ({"doping.pattern": "random"}, "block16"),
        ({"doping.anneal.start": 0.9}, "start <= end"),
        ({"doping.structure": "zero", "doping.sparse": False}, "left of the weight"),
        ({"model.tied": True, "model.embedding": 7}, "tied needs embedding = hidden, not 7 and 200"),
        ({"model.depth": 3}, r"no key model\.depth"),
        (
            {"model.awd.weightdrop": 0.1},
            r"no key model\.awd\.weightdrop: did you mean model\.awd\.weight_drop",
        ),
        ({"data.kinds": "ptb"}, r"no key data\.kinds: did you mean data\.kind\?"),
        ({"task": "chess"}, "task"),
        ({"train.lr": "{"}, "YAML"),
    ],
)
def test_mistakes_are_named(overrides: dict[str, Any], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        load_recipe("lm-small", overrides)


def test_recipe_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="lm-small"):
        load_recipe("lm-huge")
    with pytest.raises(RecipeError, match="none there"):
        load_recipe(tmp_path / "absent.yaml")
    for text, word in (
        ("a: [", "YAML"),
        ("- 1", "mapping"),
        (yaml.safe_dump({**fields(), "extra": 1}), "extra"),
    ):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(RecipeError, match=word):
            load_recipe(tmp_path / "r.yaml")
