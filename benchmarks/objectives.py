"""Training losses that several methods share."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from balanced_sam import TargetWeights, smooth_counts, weighted_mean
from benchmarks.protocol import Dataset, Objective, Recipe, Splits


def absolute_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the absolute error of each element, in target units."""
    return (predictions - targets).abs()


def squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error of each element, in squared target units."""
    return (predictions - targets).square()


class WeightedLoss(nn.Module):
    """The mean of weights times the data set's loss of each element.

    While it :meth:`draws <drawing>`, the batch is to be the part that :meth:`draw` names.
    """

    def __init__(self, dataset: Dataset, weights: TargetWeights) -> None:
        super().__init__()
        self.criterion = dataset.criterion
        self.weights = weights
        self.is_weighted = True
        self.draws = False

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, 0-dim."""
        losses = self.criterion(predictions, targets)
        weights = self.weights(targets) if self.is_weighted else torch.ones_like(losses)
        if self.draws:
            # Samples are drawn by their mean weight, which must not count twice.
            weights = weights / _of_samples(weights).view(-1, *[1] * (weights.dim() - 1))
        return weighted_mean(losses, weights)

    def draw(self, targets: Tensor) -> Tensor:
        """Return the indices of a quarter of the samples, rounded up, drawn by weight."""
        # BatchNorm refuses a single sample.
        size = min(len(targets), max(2, -(-len(targets) // 4)))
        return torch.multinomial(_of_samples(self.weights(targets)), size)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Take batches for parts drawn by weight while the block runs."""
        self.draws = True
        try:
            yield
        finally:
            self.draws = False

    @contextmanager
    def unweighted(self) -> Iterator[None]:
        """Leave the weights out while the block runs."""
        self.is_weighted = False
        try:
            yield
        finally:
            self.is_weighted = True


def _of_samples(weights: Tensor) -> Tensor:
    """Return the mean weight of each sample's elements."""
    return weights.flatten(1).nanmean(dim=1) if weights.dim() > 1 else weights


def weighted(scheme: str | None, *, smoothed: bool = False) -> Objective:
    """Return the maker of the data set's loss with weights.

    Args:
        scheme: ``"inv"``, ``"sqinv"`` or ``"none"``; None for the one of the data set's LDS.
        smoothed: Take the weights of counts smoothed by LDS.
    """
    return partial(_make_weighted, scheme=scheme, smoothed=smoothed)


def _make_weighted(
    dataset: Dataset, recipe: Recipe, splits: Splits, *, scheme: str | None, smoothed: bool
) -> nn.Module:
    scheme = scheme or dataset.lds_scheme
    # The raw scale is that of SQINV; other weights take its mean, or they would train at another
    # learning rate.
    raw = not recipe.normalized and (scheme != "sqinv" or smoothed) and scheme != "none"
    weights = TargetWeights.from_counts(
        dataset.bins,
        splits.train_counts,
        scheme=scheme,
        smoothing=partial(smooth_of, dataset=dataset) if smoothed else None,
        clip=dataset.inv_clip if scheme == "inv" else None,
        normalize=recipe.normalized or raw,
    )
    if raw:
        scaled = weights.bin_weights * dataset.mean_weight
        weights = TargetWeights(dataset.bins, splits.train_counts, scaled)
    return WeightedLoss(dataset, weights)


def smooth_of(counts: Tensor, *, dataset: Dataset) -> Tensor:
    """Return the effective counts of LDS; before the first bin of the range they stay 0."""
    outside, inside = counts[: dataset.lds_first_bin], counts[dataset.lds_first_bin :]
    return torch.cat([outside, smooth_counts(inside, boundary=dataset.lds_boundary)])
