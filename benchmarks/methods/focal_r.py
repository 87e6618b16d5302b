"""Focal-R: a loss that counts less where the error is small (Yang et al., 2021)."""

from torch import Tensor

from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.method import Method
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._losses import Loss
from benchmarks.methods._stages import whole

BETA = 0.2
"""Per target unit; the factor's exponent gamma is 1 and left out."""


class FocalR(Loss):
    r"""The mean of the losses, each times a factor that grows with the error from 0 to 1.

    .. math:: \frac1N \sum_i \bigl(2 \, \sigma(\beta |e_i|) - 1\bigr)^\gamma \, \ell_i

    The paper writes the sigmoid alone, which falls to 1/2 only; this is what its code computes.
    """

    def __init__(self, dataset: Dataset, recipe: Recipe, splits: Splits) -> None:
        super().__init__()
        self.criterion = dataset.criterion

    def of(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of predictions, 0-dim, in the criterion's units."""
        factors = 2 * (BETA * (predictions - targets).abs()).sigmoid() - 1
        return (factors * self.criterion(predictions, targets)).mean()


METHOD = Method(
    title="Focal-R",
    stages=whole(FocalR),
    place=6,
)
