"""Weights of a power of the counts: from vanilla (0) over SQINV (1/2) to INV (1)."""

from benchmarks.experiment.method import Method, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._losses import weighted
from benchmarks.methods._stages import whole


def _stages(recipe: Recipe, *, exponent: float) -> list[Stage]:
    return whole(weighted(exponent))(recipe)


METHOD = Method(
    title="Weights alone",
    stages=_stages,
    constants={"exponent": 0.5},
    tuned={"rotated_and_scaled_digits": {"exponent": 0.75}},
    place=5,
)
