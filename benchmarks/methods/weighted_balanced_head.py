"""Weights of a power of the counts, and then a new head by Balanced MSE (BMC)."""

from typing import Any

from benchmarks.experiment.method import Method, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._balanced_mse import CONSTANTS, TUNED_HEAD, bmc_head
from benchmarks.methods._losses import weighted
from benchmarks.methods._stages import whole


def _stages(recipe: Recipe, *, exponent: float, **constants: Any) -> list[Stage]:
    return [*whole(weighted(exponent))(recipe), bmc_head(**constants)]


METHOD = Method(
    title="Weighted, balanced head",
    stages=_stages,
    constants=CONSTANTS | {"exponent": 0.5},
    tuned=TUNED_HEAD
    | {
        "airports": {"balanced_mse_lr": 1e-3, "noise_sigma": 300.0, "noise_sigma_lr": 0.0},
        "melting_points": {"balanced_mse_lr": 1e-2, "noise_sigma": 30.0, "noise_sigma_lr": 0.0},
        "rooms": {
            "exponent": 1.0,
            "balanced_mse_lr": 1e-2,
            "noise_sigma": 1.0,
            "noise_sigma_lr": 0.0,
        },
        "rotated_digits": {"balanced_mse_lr": 3e-2, "noise_sigma_lr": 0.0},
        "satellite_elevation": {
            "exponent": 1.0,
            "balanced_mse_lr": 1e-3,
            "noise_sigma": 1000.0,
            "noise_sigma_lr": 0.0,
        },
    },
    place=11,
)
