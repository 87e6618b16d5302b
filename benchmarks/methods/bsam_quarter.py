"""BSAM whose first pass has a quarter of the batch, drawn by weight."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from balanced_sam import frozen_running_stats, weighted_mean
from benchmarks.experiment.method import Method, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._losses import WeightedLoss, weighted
from benchmarks.methods._sam import two_passes


class DrawnLoss(WeightedLoss):
    """A weighted loss of the batch, or of a part of it that is drawn by weight."""

    def of_a_quarter(self, network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a quarter of the samples, rounded up, drawn by weight."""
        # BatchNorm refuses a single sample.
        size = min(len(targets), max(2, -(-len(targets) // 4)))
        drawn = torch.multinomial(_of_samples(self.weights(targets)), size)
        losses = self.criterion(network(inputs[drawn]), targets[drawn])
        weights = self.weights(targets[drawn])
        # Samples are drawn by their mean weight, which must not count twice.
        share = _of_samples(weights).view(-1, *[1] * (weights.dim() - 1))
        return weighted_mean(losses, weights / share)


def _of_samples(weights: Tensor) -> Tensor:
    """Return the mean weight of each sample's elements."""
    return weights.flatten(1).nanmean(dim=1) if weights.dim() > 1 else weights


@contextmanager
def quarter(network: nn.Module, objective: nn.Module) -> Iterator[None]:
    """Pass a part of the batch through, which is too small for the running statistics."""
    objective.forward = objective.of_a_quarter
    try:
        with frozen_running_stats(network):
            yield
    finally:
        del objective.forward


def stages(
    recipe: Recipe, *, rho_quarter: float, rho_warmup_epochs: int, exponent: float
) -> list[Stage]:
    """Return the one part of training."""
    make = two_passes(weighted(exponent, kind=DrawnLoss), ascent=quarter)
    return make(recipe, rho=rho_quarter, rho_warmup_epochs=rho_warmup_epochs)


METHOD = Method(
    title="BSAM, quarter",
    stages=stages,
    constants={"rho_quarter": 0.05, "rho_warmup_epochs": 0, "exponent": 0.5},
    tuned={
        "airports": {"epochs": 80, "exponent": 1.0, "rho_quarter": 0.03},
        "melting_points": {"exponent": 0.75, "rho_quarter": 0.03},
        "rooms": {"exponent": 1.0, "rho_quarter": 0.001},
        "rotated_and_scaled_digits": {"exponent": 0.75, "rho_quarter": 0.1},
        "rotated_digits": {
            "epochs": 32,
            "lr": 0.15,
            "exponent": 0.75,
            "rho_quarter": 1.6,
            "rho_warmup_epochs": 5,
        },
        "satellite_elevation": {"epochs": 20, "exponent": 1.0, "rho_quarter": 0.003},
    },
    place=17,
)
