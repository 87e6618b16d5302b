"""Losses of each element, which data sets choose from."""

from torch import Tensor


def absolute_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the absolute error of each element, in target units."""
    return (predictions - targets).abs()


def squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error of each element, in squared target units."""
    return (predictions - targets).square()
