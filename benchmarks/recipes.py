"""The recipe of a run: the data set's, converted, changed, and as its record describes it."""

import dataclasses
from typing import Any

from benchmarks.protocol import CONSTANTS, Dataset, Method, Recipe


def normalize(recipe: Recipe, mean_weight: float) -> Recipe:
    """Return the recipe for weights of mean 1 that trains as ``recipe`` does with raw ones.

    With momentum SGD, raw weights of mean s equal weights of mean 1 with s times the learning rate
    and 1/s times the weight decay.
    """
    if recipe.normalized:
        return recipe
    return dataclasses.replace(
        recipe,
        normalized=True,
        lr=recipe.lr * mean_weight,
        weight_decay=recipe.weight_decay / mean_weight,
    )


def resolved_recipe(dataset: Dataset, *, changes: dict[str, Any], normalized: bool) -> Recipe:
    """Return the recipe a run uses: the data set's, with weights of mean 1 or not, changed."""
    if "normalized" in changes:
        raise ValueError("Expected --normalized, which converts the recipe, not --set normalized.")
    entries = dataclasses.asdict(dataset.recipe).keys()
    unknown = sorted(changes.keys() - entries)
    if unknown:
        raise ValueError(f"Expected entries of the recipe {list(entries)}, but got {unknown}.")
    for name in ("epochs", "batch_size", "retrain_epochs"):
        if changes.get(name, 1) < 1:
            raise ValueError(f"Expected {name} to be at least 1, but got {changes[name]}.")
    for name in ("rho", "rho_quarter"):
        if changes.get(name, 0) < 0:
            raise ValueError(f"Expected {name} to be non-negative, but got {changes[name]}.")
    recipe = normalize(dataset.recipe, dataset.mean_weight) if normalized else dataset.recipe
    return dataclasses.replace(recipe, **changes)


def described_recipe(recipe: Recipe, method: Method) -> dict[str, Any]:
    """Return what the method uses of the recipe, and the epochs of each stage, for the record."""
    entries = dataclasses.asdict(recipe)
    for name in CONSTANTS - set(method.constants):
        del entries[name]
    return entries | {"stage_epochs": [stage.epochs for stage in method.stages(recipe)]}
