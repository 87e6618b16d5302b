"""Training losses that several methods share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from balanced_sam import TargetWeights, smooth_counts, weighted_mean
from benchmarks.experiment.dataset import Dataset, Splits
from benchmarks.experiment.method import Objective
from benchmarks.experiment.recipe import Recipe


class Loss(nn.Module, ABC):
    """The training loss of a method."""

    def forward(self, network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of the network on a batch, 0-dim."""
        return self.of(network(inputs), targets)

    @abstractmethod
    def of(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of predictions, 0-dim."""


class WeightedLoss(Loss):
    """The mean of weights times the data set's loss of each element.

    Attributes:
        weights: Maps targets to weights of their shape.
    """

    def __init__(self, dataset: Dataset, weights: nn.Module) -> None:
        super().__init__()
        self.criterion = dataset.criterion
        self.weights = weights

    def of(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of predictions, 0-dim."""
        return weighted_mean(self.criterion(predictions, targets), self.weights(targets))


@contextmanager
def unweighted(network: nn.Module, objective: nn.Module) -> Iterator[None]:
    """Let a :class:`WeightedLoss` do without its weights while the block runs."""
    weights, objective.weights = objective.weights, _Ones()
    try:
        yield
    finally:
        objective.weights = weights


class _Ones(nn.Module):
    """Weights that change nothing."""

    def forward(self, targets: Tensor) -> Tensor:
        """Return ones of the targets' shape."""
        return torch.ones_like(targets)


def weighted(
    scheme: str | float | None,
    *,
    smoothed: bool = False,
    clip_counts: tuple[float, float] | None = None,
    kind: Callable[[Dataset, nn.Module], WeightedLoss] = WeightedLoss,
) -> Objective:
    """Return the maker of the data set's loss with weights.

    Args:
        scheme: ``"inv"``, ``"sqinv"``, ``"none"`` or the exponent; None for the one of the data
            set's LDS.
        smoothed: Take the weights of counts smoothed by LDS.
        clip_counts: Bounds of the counts; None for those of the data set's INV.
        kind: What is made with the weights.
    """
    return partial(
        _make_weighted, scheme=scheme, smoothed=smoothed, clip_counts=clip_counts, kind=kind
    )


def _make_weighted(
    dataset: Dataset,
    recipe: Recipe,
    splits: Splits,
    *,
    scheme: str | float | None,
    smoothed: bool,
    clip_counts: tuple[float, float] | None,
    kind: Callable[[Dataset, nn.Module], WeightedLoss],
) -> nn.Module:
    scheme = dataset.lds_scheme if scheme is None else scheme
    # The raw scale is that of SQINV; other weights take its mean, or they would train at another
    # learning rate.
    is_sqinv = scheme in ("sqinv", 0.5) and not smoothed and not clip_counts
    raw = not (recipe.normalized or is_sqinv or scheme in ("none", 0))
    weights = TargetWeights.from_counts(
        dataset.bins,
        splits.train_counts,
        scheme=scheme,
        smoothing=partial(smooth_of, dataset=dataset) if smoothed else None,
        clip_counts=clip_counts or (dataset.clip_counts if scheme in ("inv", 1) else None),
        normalize=recipe.normalized or raw,
    )
    if raw:
        scaled = weights.bin_weights * dataset.mean_weight
        weights = TargetWeights(dataset.bins, splits.train_counts, scaled)
    return kind(dataset, weights)


def smooth_of(counts: Tensor, *, dataset: Dataset) -> Tensor:
    """Return the effective counts of LDS; before the first bin of the range they stay 0."""
    outside, inside = counts[: dataset.lds_first_bin], counts[dataset.lds_first_bin :]
    return torch.cat([outside, smooth_counts(inside, boundary=dataset.lds_boundary)])
