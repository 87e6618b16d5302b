"""An experiment as it is run: the recipe and the constants of a method on a data set, changed."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, get_args

from benchmarks.experiment.method import Stage
from benchmarks.experiment.recipe import Descent, Recipe, Schedule
from benchmarks.experiment.registry import get_dataset, get_method

_POSITIVE = ("epochs", "batch_size", "retrain_epochs")
_CHOICES = {"optimizer": get_args(Descent), "schedule": get_args(Schedule)}


@dataclass(frozen=True)
class Plan:
    """What a run does."""

    dataset: str
    method: str
    recipe: Recipe
    constants: dict[str, Any]
    """Of the method."""

    @property
    def stages(self) -> list[Stage]:
        """The parts of training."""
        return get_method(self.method).stages(self.recipe, **self.constants)

    @property
    def description(self) -> dict[str, Any]:
        """Recipe, constants, and the epochs of each stage, as the record has them."""
        epochs = {"stage_epochs": [stage.epochs for stage in self.stages]}
        entries = dataclasses.asdict(self.recipe) | self.constants | epochs
        return {name: value for name, value in entries.items() if value is not None}


def changes_by_method(methods: list[str], changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return of the changes those that each method takes: all but other methods' constants."""
    own = {method: get_method(method).constants.keys() for method in methods}
    constants = set().union(*own.values())
    return {
        method: {k: v for k, v in changes.items() if k in own[method] or k not in constants}
        for method in methods
    }


def plan(
    dataset: str, method: str, changes: dict[str, Any] | None = None, *, normalized: bool = False
) -> Plan:
    """Return what is done for a method on a data set.

    Args:
        dataset: File name of the data set.
        method: File name of the method.
        changes: Entries of the recipe, or constants of the method, to change.
        normalized: Train with weights of mean 1, the recipe converted.

    Raises:
        ValueError: If there is no such entry, or its value cannot be.
    """
    changes = changes or {}
    constants = dict(get_method(method).constants)
    entries = {field.name for field in dataclasses.fields(Recipe)}
    if "normalized" in changes:
        raise ValueError("Expected --normalized, which converts the recipe, not --set normalized.")
    if unknown := sorted(changes.keys() - entries - constants.keys()):
        raise ValueError(
            f"Expected entries of the recipe {sorted(entries)} or constants of {method} "
            f"{sorted(constants)}, but got {unknown}."
        )
    tuned = get_method(method).tuned.get(dataset, {})
    recipe = get_dataset(dataset).recipe
    recipe = dataclasses.replace(recipe, **{k: v for k, v in tuned.items() if k in entries})
    constants |= {k: v for k, v in tuned.items() if k not in entries}
    if normalized:
        recipe = recipe.normalize(get_dataset(dataset).mean_weight)
    defaults = dataclasses.asdict(recipe) | constants
    for name, value in changes.items():
        _check(name, value, defaults[name])
    return Plan(
        dataset,
        method,
        dataclasses.replace(recipe, **{k: v for k, v in changes.items() if k in entries}),
        constants | {k: v for k, v in changes.items() if k in constants},
    )


def _check(name: str, value: Any, default: Any) -> None:
    """Raise if an entry or a constant cannot have a value in place of its default."""
    if name in _CHOICES:
        expected, fits = f"one of {list(_CHOICES[name])}", value in _CHOICES[name]
    elif isinstance(default, bool):
        expected, fits = "true or false", isinstance(value, bool)
    elif isinstance(default, int):
        expected, fits = "a whole number", type(value) is int
    else:
        expected, fits = "a finite number", type(value) in (int, float) and math.isfinite(value)
    if not fits:
        raise ValueError(f"Expected {name} to be {expected}, but got {value!r}.")
    least = int(name in _POSITIVE)
    if isinstance(value, (int, float)) and value < least:
        raise ValueError(f"Expected {name} to be at least {least}, but got {value}.")
