"""Each output weighted by a power of the count of its own bin, whatever the other outputs are."""

import torch
from torch import Tensor, nn

from balanced_sam import TargetWeights
from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.method import Method, Stage
from benchmarks.experiment.recipe import Recipe
from benchmarks.methods._losses import WeightedLoss, weighted
from benchmarks.methods._stages import whole


class PerOutput(nn.Module):
    """Map targets, shape ``(N, d)``, to a weight each, of mean 1 whatever the recipe."""

    def __init__(self, dataset: Dataset, counts: Tensor, exponent: float) -> None:
        super().__init__()
        axes = dataset.bins.axes
        self.each = nn.ModuleList(
            TargetWeights.from_counts(bins, _marginal(counts, axis), scheme=exponent)
            for axis, bins in enumerate(axes)
        )

    def forward(self, targets: Tensor) -> Tensor:
        """Return the weights, of the targets' shape."""
        columns = targets.unbind(-1)
        return torch.stack([w(t) for w, t in zip(self.each, columns, strict=True)], dim=-1)


def _marginal(counts: Tensor, axis: int) -> Tensor:
    """Return the samples in each bin of one target."""
    return counts.movedim(axis, 0).flatten(1).sum(1)


def _stages(recipe: Recipe, *, exponent: float) -> list[Stage]:
    def objective(dataset: Dataset, recipe: Recipe, splits: Splits) -> nn.Module:
        if len(dataset.bins.axes) == 1:
            return weighted(exponent)(dataset, recipe, splits)
        return WeightedLoss(dataset, PerOutput(dataset, splits.train_counts, exponent))

    return whole(objective)(recipe)


METHOD = Method(
    title="Weighted per output",
    stages=_stages,
    constants={"exponent": 0.5},
    place=6,
)
