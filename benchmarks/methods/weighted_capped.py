"""Weights of a power of the counts, capped: bins below a count weigh as if they had it."""

import math

from benchmarks.experiment.method import Method, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._losses import weighted
from benchmarks.methods._stages import whole


def _stages(recipe: Recipe, *, exponent: float, least_count: float) -> list[Stage]:
    return whole(weighted(exponent, clip_counts=(least_count, math.inf)))(recipe)


METHOD = Method(
    title="Weighted, capped",
    stages=_stages,
    constants={"exponent": 0.5, "least_count": 10.0},
    tuned={
        "airports": {"exponent": 1.0, "least_count": 3.0},
        "melting_points": {"exponent": 1.0},
        "rooms": {"exponent": 1.0, "least_count": 1500.0},
        "rotated_and_scaled_digits": {"epochs": 20, "exponent": 0.75, "least_count": 3.0},
        "rotated_digits": {"exponent": 0.75, "least_count": 3.0},
        "satellite_elevation": {"epochs": 10, "lr": 8e-3, "exponent": 1.0, "least_count": 3.0},
    },
    place=6,
)
