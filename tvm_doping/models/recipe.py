"""Recipes: everything that says how a model is trained, with one help line a field."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator

from tvm_doping.errors import RecipeError
from tvm_doping.models.parametrizations import WEIGHTS
from tvm_doping.models.strict_yaml import parse_yaml, read_yaml
from tvm_doping.models.tasks import TASKS, Task, TaskName
from tvm_doping.models.tasks.protocol import Part
from tvm_doping.sparsity import PATTERNS

RECIPES = Path(__file__).with_name("recipes")


class AnnealRecipe(Part):
    """When S is thinned; start and end as shares of all steps."""

    start: float = Field(default=0.05, ge=0, le=1, description="where thinning begins")
    end: float = Field(default=0.5, ge=0, le=1, description="where S is as sparse as it is to be")
    frequency: int = Field(default=50, ge=1, description="steps between two masks")
    scope: Literal["matrix", "global"] = Field(
        default="matrix", description="one density for each weight, or one ranking over all"
    )
    regrow: float = Field(
        default=0.0, ge=0, le=1, description="share of S's entries exchanged at first, after end; 0: none"
    )
    regrow_end: float = Field(default=0.75, ge=0, le=1, description="where exchanging ends")


class CmrRecipe(Part):
    """Co-matrix dropout; start and end as shares of all steps."""

    structured: float = Field(
        default=0.0, ge=0, lt=1, description="rate of dropped rows of the structured part"
    )
    sparse: float = Field(default=0.0, ge=0, lt=1, description="rate of dropped rows of the sparse part")
    start: float = Field(default=0.0, ge=0, le=1, description="where it begins")
    end: float = Field(default=1.0, ge=0, le=1, description="where it ends")
    fade: bool = Field(default=False, description="fall linearly to 0 between the two")


class DopingRecipe(Part):
    """What the weights of the chosen modules become."""

    structure: Literal["kronecker", "low_rank", "hybrid", "zero"] = Field(
        default="kronecker", description="the structured part"
    )
    compression: float = Field(
        default=20.0, gt=1, description="dense parameters / (factors + nonzeros), of every weight"
    )
    pattern: str = Field(
        default="unstructured", description="where S may have entries: " + ", ".join(PATTERNS)
    )
    modules: list[str] = Field(
        default=["lstm"], description="globs of modules or weights; also output, embedding"
    )
    init: Literal["random", "nearest"] = Field(default="random", description="where the factors start")
    structured_scale: float = Field(
        default=0.2, ge=0, description="first deviation of the structured part, as a share of the weight's"
    )
    factors: tuple[int, int] | None = Field(
        default=None, description="B's shape, or (dense rows, rank) of hybrid; none: chosen"
    )
    rank: int | None = Field(default=None, ge=1, description="rank of low_rank; none: chosen")
    sparse: bool = Field(default=True, description="false: the structured part alone")
    anneal: AnnealRecipe = Field(default=AnnealRecipe(), description="thinning of S")
    cmr: CmrRecipe = Field(default=CmrRecipe(), description="co-matrix dropout; a number: both rates")

    @field_validator("cmr", mode="before")
    @classmethod
    def _one_rate(cls, value: Any) -> Any:
        return {"structured": value, "sparse": value} if isinstance(value, int | float) else value


class DistilRecipe(Part):
    """What the student of `train.teacher` learns from it."""

    weight: float = Field(
        default=0.5, gt=0, le=1, description="share of the teacher in the objective; the rest is the data's"
    )
    temperature: float = Field(
        default=2.0, gt=0, description="what both models' logits are divided by when they are compared"
    )


class TrainRecipe(Part):
    """The training loop."""

    epochs: int = Field(ge=1, description="passes over the training split")
    batch: int = Field(default=20, ge=1, description="streams side by side, N")
    accumulate: int = Field(
        default=1, ge=1, description="batches to one step of the optimiser, by the mean of their gradients"
    )
    steps: int = Field(
        default=20,
        ge=1,
        description="of language models: time steps of a segment, T, as far as gradients reach back",
    )
    optimiser: Literal["sgd", "adam"] = Field(default="sgd", description="sgd without momentum, or adam")
    lr: float = Field(
        default=1.0,
        gt=0,
        description="learning rate; of language models for a loss summed over T, averaged over N",
    )
    hold: int = Field(default=4, ge=0, description="epochs at the full learning rate")
    decay: float = Field(default=0.5, gt=0, le=1, description="its factor in each epoch after those")
    clip: float = Field(default=5.0, gt=0, description="largest norm of the gradients")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16: mixed precision; on a CPU of the output layer alone"
    )
    seed: int = Field(default=0, ge=0, description="of initial values, dropout and CMR")
    patience: int = Field(
        default=0, ge=0, description="stop after so many epochs without a better validation; 0: never"
    )
    log_steps: int = Field(
        default=100, ge=1, description="steps between two lines of metrics, and two looks for NaN"
    )
    save_steps: int = Field(default=500, ge=1, description="steps between two states to resume from")
    start: str | None = Field(
        default=None, description="run folder of a dense model: its weights, before doping; none: random ones"
    )
    teacher: str | None = Field(
        default=None, description="run folder of a model, mostly dense, whose predictions are learned too"
    )
    distil: DistilRecipe = Field(default=DistilRecipe(), description="how, of a teacher")


class Recipe(Part):
    """A whole training run."""

    name: str = Field(description="how it is called")
    about: str = Field(default="", description="what it is, and its source")
    task: TaskName = Field(default="language_model", description="what is trained")
    data: SerializeAsAny[Part] = Field(
        default={}, validate_default=True, description="which data; the fields are the task's"
    )
    model: SerializeAsAny[Part] = Field(description="the dense model; the fields are the task's")
    doping: DopingRecipe | None = Field(default=None, description="none: the model stays dense")
    train: TrainRecipe = Field(description="the loop")

    @field_validator("data", "model", mode="before")
    @classmethod
    def _of_the_task(cls, value: Any, info: ValidationInfo) -> Part:
        task = TASKS.get(info.data.get("task", ""))
        if task is None:
            return Part()  # the task itself is reported
        return _parts(task)[str(info.field_name)].model_validate(value)


def names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(
    recipe: str | os.PathLike[str] | Recipe, overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """A recipe by name ("lm-small") or path of a YAML file, with overrides by dotted key ({"train.epochs":
    3}).

    Values given as text are read as YAML. Raises RecipeError naming every unknown key and impossible value.
    """
    if isinstance(recipe, Recipe):
        label, fields = recipe.name, recipe.model_dump(mode="json")
    else:
        label, fields = str(recipe), _read(recipe)
    for key, value in (overrides or {}).items():
        _override(fields, key, _value(key, value))
    try:
        found = Recipe.model_validate(fields)
    except ValidationError as error:
        keys = _keys(Recipe, TASKS.get(str(fields.get("task", "language_model"))))
        faults = [
            _fault(e["type"], ".".join(map(str, e["loc"])), e["msg"], e["input"], keys)
            for e in error.errors()
        ]
        raise RecipeError(
            f"recipe {label}",
            "known keys with possible values",
            "; ".join(faults)[:4000],
            "Correct these keys.",
        ) from None
    _check(found, label)
    return found


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out: `load_recipe` reads it back."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def differences(before: str, after: str) -> str:
    """The settings in which two recipes, as YAML, differ: "train.epochs 3, was 2; ..."."""
    old, new = (_flat(yaml.safe_load(text) or {}) for text in (before, after))
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return "; ".join(f"{key} {new.get(key)}, was {old.get(key)}" for key in changed) or "written otherwise"


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _fault(kind: str, key: str, message: str, value: Any, keys: list[str]) -> str:
    """One thing that is wrong with a recipe, in words."""
    if kind != "extra_forbidden":
        return f"{key}: {message} (got {repr(value)[:80]})"
    near = get_close_matches(key, keys, 1, 0.8) or get_close_matches(
        key.rpartition(".")[2], [k.rpartition(".")[2] for k in keys], 1
    )
    named = next((k for k in keys if near and (k == near[0] or k.endswith(f".{near[0]}"))), None)
    return f"there is no key {key}" + (f": did you mean {named}?" if named else "")


def _keys(part: type[BaseModel], task: Task[Any] | None, prefix: str = "") -> list[str]:
    """The dotted names of all fields of a recipe's part, those of the task among them."""
    found = []
    own = _parts(task) if part is Recipe and task is not None else {}
    for name, field in part.model_fields.items():
        found.append(prefix + name)
        for inner in (own.get(name), field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, Part):
                found += _keys(inner, task, f"{prefix}{name}.")
    return found


def _parts(task: Task[Any]) -> dict[str, type[Part]]:
    """The parts of a recipe that are a task's own."""
    return {"data": task.data_recipe, "model": task.model_recipe}


def _check(recipe: Recipe, label: str) -> None:
    """What one field alone cannot say."""
    if recipe.train.teacher is not None and not TASKS[recipe.task].classes:
        able = ", ".join(name for name, task in TASKS.items() if task.classes)
        raise RecipeError(
            f"recipe {label}: train.teacher", f"a task with logits ({able})", recipe.task, "Leave it out."
        )
    doping = recipe.doping
    if doping is None:
        return
    if doping.pattern not in PATTERNS:
        raise RecipeError(
            f"recipe {label}: doping.pattern",
            f"one of {', '.join(PATTERNS)}",
            repr(doping.pattern),
            "Choose one.",
        )
    if doping.anneal.start > doping.anneal.end or doping.cmr.start > doping.cmr.end:
        raise RecipeError(
            f"recipe {label}: doping", "start <= end", "start > end", "Swap them in anneal or cmr."
        )
    if doping.anneal.regrow and doping.anneal.regrow_end < doping.anneal.end:
        raise RecipeError(
            f"recipe {label}: doping.anneal.regrow_end",
            f"at least anneal.end, {doping.anneal.end:g}",
            f"{doping.anneal.regrow_end:g}",
            "Raise it, or set regrow to 0.",
        )
    if doping.structure == "zero" and not doping.sparse:
        raise RecipeError(
            f"recipe {label}: doping",
            "something left of the weight",
            "structure zero, sparse false",
            "Change one.",
        )
    assert doping.structure in WEIGHTS


def _read(recipe: str | os.PathLike[str]) -> dict[str, Any]:
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPES / f"{recipe}.yaml"
        if str(recipe) not in names():
            raise RecipeError(
                "recipe", f"one of {', '.join(names())}, or a .yaml file", repr(str(recipe)), "Choose one."
            )
    try:
        fields = read_yaml(path)
    except FileNotFoundError:
        raise RecipeError(
            "recipe", f"a file {path}", "none there", f"Recipes that come along: {', '.join(names())}."
        ) from None
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        got = str(error)[:400] or type(error).__name__
        raise RecipeError(f"recipe {path}", "readable YAML", got, "Correct the file.") from error
    if not isinstance(fields, dict):
        raise RecipeError(
            f"recipe {path}", "a YAML mapping", type(fields).__name__, "Start from one that comes along."
        )
    return fields


def _value(key: str, value: Any) -> Any:
    """The value of an override, read as YAML where it is text."""
    try:
        return parse_yaml(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RecipeError(
            f"override {key}", "a YAML value", repr(value)[:80], "Quote it, or correct it."
        ) from None


def _override(fields: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = fields.get(parent)
        fields[parent] = dict(inner) if isinstance(inner, Mapping) else {}
        fields = fields[parent]
    fields[last] = value
