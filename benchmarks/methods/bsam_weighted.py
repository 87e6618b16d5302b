"""BSAM on a loss weighted by a power of the counts, with both passes weighted."""

from benchmarks.experiment.method import Method, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._losses import weighted
from benchmarks.methods._sam import CONSTANTS, TUNED, two_passes


def _stages(recipe: Recipe, *, exponent: float, **constants: float) -> list[Stage]:
    return two_passes(weighted(exponent))(recipe, **constants)


METHOD = Method(
    title="BSAM, weighted",
    stages=_stages,
    constants=CONSTANTS | {"exponent": 0.5},
    tuned=TUNED
    | {
        "airports": {"rho": 0.1},
        "melting_points": {"epochs": 40, "rho": 0.03},
        "satellite_elevation": {"lr": 2e-3, "rho": 0.01},
        "rotated_and_scaled_digits": {"epochs": 20, "rho": 0.1, "exponent": 0.75},
    },
    place=13,
)
