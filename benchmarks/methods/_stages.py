"""The parts of training that several methods share."""

from collections.abc import Callable

from benchmarks.experiment.method import Objective, Optimizers, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._losses import weighted
from benchmarks.methods._optimizers import base


def whole(objective: Objective, optimizers: Optimizers = base) -> Callable[[Recipe], list[Stage]]:
    """Train the whole network."""
    return lambda recipe: [Stage(objective, optimizers, recipe.epochs)]


def after_vanilla(recipe: Recipe, stage: Stage) -> list[Stage]:
    """Train the whole network with the loss unweighted, and then ``stage``."""
    return [Stage(weighted("none"), base, recipe.epochs), stage]
