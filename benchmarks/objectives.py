"""Training losses that several methods share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from balanced_sam import TargetBins, TargetWeights, weighted_mean


class WeightedL1(nn.Module):
    """The mean of weights times absolute errors, in target units."""

    def __init__(self, weights: TargetWeights) -> None:
        super().__init__()
        self.weights = weights
        self.is_weighted = True

    def forward(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, 0-dim."""
        errors = (predictions - targets).abs()
        weights = self.weights(targets) if self.is_weighted else torch.ones_like(errors)
        return weighted_mean(errors, weights)

    @contextmanager
    def unweighted(self) -> Iterator[None]:
        """Leave the weights out while the block runs."""
        self.is_weighted = False
        try:
            yield
        finally:
            self.is_weighted = True


def weighted_l1(
    scheme: str, *, clip: tuple[float, float] | None = None
) -> Callable[[TargetBins, Tensor], nn.Module]:
    """Return the maker of an L1 loss with weights of ``scheme``, normalised to mean 1."""
    return partial(_make_weighted_l1, scheme=scheme, clip=clip)


def _make_weighted_l1(
    bins: TargetBins, targets: Tensor, *, scheme: str, clip: tuple[float, float] | None
) -> nn.Module:
    return WeightedL1(TargetWeights.from_targets(targets, bins, scheme=scheme, clip=clip))
