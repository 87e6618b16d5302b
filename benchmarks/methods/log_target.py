"""The network predicts the logarithm of the target, where all targets are positive."""

import torch
from torch import Tensor, nn

from balanced_sam import weighted_mean
from benchmarks.experiment.dataset import Splits
from benchmarks.experiment.method import Method, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._losses import WeightedLoss, weighted
from benchmarks.methods._optimizers import base


class Exponential(nn.Module):
    r"""A network whose output :math:`u` says the target :math:`m \exp(u / m - 1)`.

    Around m, the mean training target, the two are equal to first order, so that what the network
    starts with is as good as without the logarithm.
    """

    mean: Tensor

    def __init__(self, network: nn.Module, mean: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return predictions in target units."""
        return self.mean * (self.network(inputs) / self.mean - 1).exp()


class LogLoss(WeightedLoss):
    """A weighted loss of logarithms, times the mean training target: near it in target units."""

    def forward(self, network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of an :class:`Exponential` on a batch, 0-dim."""
        scale, predictions = network.mean, network(inputs)
        # A rotation fills the corners of a map with zeros, which do not count.
        is_counted = targets > 0
        predictions, targets = predictions[is_counted], targets[is_counted]
        losses = self.criterion(scale * predictions.log(), scale * targets.log())
        return weighted_mean(losses, self.weights(targets))


def exponential(network: nn.Module, splits: Splits) -> nn.Module:
    """Return the network behind an exponential.

    Raises:
        ValueError: If some training target is not positive, or a sample has several.
    """
    targets = splits.train_targets
    if targets.dim() > 1:
        raise ValueError(
            f"Expected one target a sample for its logarithm, but got {targets.shape[-1]}."
        )
    if not (targets > 0).all():
        raise ValueError(
            "Expected positive training targets for their logarithm, but got "
            f"{targets.min().item():g}."
        )
    return Exponential(network, targets.mean(dtype=torch.float64).float())


def _stages(recipe: Recipe, *, exponent: float) -> list[Stage]:
    return [Stage(weighted(exponent, kind=LogLoss), base, recipe.epochs, network=exponential)]


METHOD = Method(
    title="Log target",
    stages=_stages,
    constants={"exponent": 0.5},
    tuned={
        "melting_points": {"epochs": 40, "lr": 4e-3, "exponent": 1.0},
        "rooms": {"exponent": 1.0},
        "rotated_digits": {"lr": 0.6},
    },
    place=7,
)
