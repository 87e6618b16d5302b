"""BSAM on a loss weighted by a power of the counts, and then a new head by Balanced MSE (BMC)."""

from typing import Any

from benchmarks.experiment.method import Method, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods import _balanced_mse, _sam
from benchmarks.methods._balanced_mse import TUNED_HEAD, bmc_head
from benchmarks.methods._losses import weighted
from benchmarks.methods._sam import two_passes


def _stages(
    recipe: Recipe, *, exponent: float, rho: float, rho_warmup_epochs: int, **constants: Any
) -> list[Stage]:
    first = two_passes(weighted(exponent))
    return [
        *first(recipe, rho=rho, rho_warmup_epochs=rho_warmup_epochs),
        bmc_head(**constants),
    ]


METHOD = Method(
    title="BSAM, balanced head",
    stages=_stages,
    constants=_sam.CONSTANTS | _balanced_mse.CONSTANTS | {"exponent": 0.5},
    tuned={
        name: {**_sam.TUNED.get(name, {}), **TUNED_HEAD.get(name, {})}
        for name in _sam.TUNED.keys() | TUNED_HEAD.keys()
    }
    | {
        "airports": {
            "rho": 0.03,
            "balanced_mse_lr": 1e-3,
            "noise_sigma": 300.0,
            "noise_sigma_lr": 0.0,
        },
        "melting_points": {
            "epochs": 10,
            "exponent": 0.0,
            "rho": 0.01,
            "balanced_mse_lr": 1e-2,
            "noise_sigma": 30.0,
            "noise_sigma_lr": 0.0,
        },
        "rotated_digits": {
            **_sam.TUNED["rotated_digits"],
            "balanced_mse_lr": 3e-2,
            "noise_sigma_lr": 0.0,
        },
    },
    place=19,
)
