"""BSAM whose radius follows the gradient: as far as the loss would rise by a given amount."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.nn.utils import get_total_norm

from benchmarks.experiment.method import Method, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._losses import weighted
from benchmarks.methods._optimizers import OptimizerAndSchedules, balanced_sam


def optimizers(
    network: nn.Module, recipe: Recipe, objective: nn.Module, *, rise: float, rho_max: float
) -> OptimizerAndSchedules:
    r"""BalancedSAM with the radius :math:`\min(\text{rise} / \lVert g \rVert, \rho_{max})`.

    Args:
        network: What is trained.
        recipe: Its entries.
        objective: The loss.
        rise: By how much the loss would rise, were it linear, in its own unit.
        rho_max: The largest radius.
    """

    @contextmanager
    def ascent(network: nn.Module, objective: nn.Module) -> Iterator[None]:
        yield
        norm = get_total_norm(p.grad for p in network.parameters() if p.grad is not None).item()
        for group in optimizer.param_groups:
            group["rho"] = min(rise / norm, rho_max) if 0 < norm < math.inf else rho_max

    optimizer, schedules = balanced_sam(
        network, recipe, objective, rho=rho_max, warmup_epochs=0, ascent=ascent
    )
    return optimizer, schedules


def _stages(recipe: Recipe, *, exponent: float, rise: float, rho_max: float) -> list[Stage]:
    within = partial(optimizers, rise=rise, rho_max=rho_max)
    return [Stage(weighted(exponent), within, recipe.epochs)]


METHOD = Method(
    title="BSAM, loss units",
    stages=_stages,
    constants={"exponent": 0.5, "rise": 1.0, "rho_max": 0.1},
    tuned={name: {"epochs": 80, "exponent": 1.0} for name in ("airports", "melting_points")},
    place=18,
)
