"""What SAM, BSAM and its ablations share: two passes, and how far the first one moves."""

from collections.abc import Callable
from functools import partial

from benchmarks.experiment.method import Objective, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._optimizers import Context, balanced_sam

CONSTANTS = {"rho": 0.05, "rho_warmup_epochs": 0}
"""Radius of the perturbation, and the epochs over which it grows to that."""
TUNED = {
    "agedb_dir": {"rho": 0.2},
    "rooms": {"rho": 0.003},
    "rotated_digits": {"epochs": 32, "lr": 0.15, "rho": 0.8, "rho_warmup_epochs": 5},
}
"""Published for ages, else chosen on validation data; SAM, BSAM and its ablations share it."""


def two_passes(
    objective: Objective, *, ascent: Context | None = None, descent: Context | None = None
) -> Callable[..., list[Stage]]:
    """Train the whole network by BalancedSAM, its passes in contexts of their own."""

    def stages(recipe: Recipe, *, rho: float, rho_warmup_epochs: int) -> list[Stage]:
        optimizers = partial(
            balanced_sam,
            rho=rho,
            warmup_epochs=rho_warmup_epochs,
            ascent=ascent,
            descent=descent,
        )
        return [Stage(objective, optimizers, recipe.epochs)]

    return stages
