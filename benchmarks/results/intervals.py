"""Paired bootstrap intervals of the difference of two methods."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 2000
_OF_MEAN: dict[str, Callable[[Array], Array]] = {"GM": np.exp, "RMSE": np.sqrt}
"""The metric, of the mean over targets; others are the mean itself."""


def paired_difference(
    sums: Array, reference: Array, counts: Array, *, metric: str
) -> tuple[float, float, float]:
    """Return the difference of a metric and its 95 % bootstrap interval.

    Both the seeds and the test samples are drawn with replacement, the same draw for both methods
    (the pigeonhole bootstrap), so that the interval covers another training run and another test
    set. With few seeds it is an approximation: five seeds say little about a sixth.

    Args:
        sums: What each test sample adds to the metric, of the method, shape ``(seeds, samples)``:
            absolute errors for MAE, their logarithms for GM, squares for RMSE, hits for delta_1.
        reference: The same of the reference, on the same seeds and samples.
        counts: How many targets each sample has, shape ``(samples,)``: 1, or a map's pixels.
        metric: ``"MAE"``, ``"GM"``, ``"RMSE"`` or ``"delta_1"``.

    Returns:
        Method minus reference, and the lower and upper end of the interval, in the metric's unit;
        NaN if there is no target.

    References:
        Owen (2007), `The pigeonhole bootstrap <https://arxiv.org/abs/0712.1111>`_.
    """
    if sums.shape != reference.shape:
        raise ValueError(
            f"Expected two methods on the same seeds and samples, but got shapes {sums.shape} and "
            f"{reference.shape}."
        )
    if not counts.sum():
        return math.nan, math.nan, math.nan
    seeds, samples = sums.shape
    seed_draws, sample_draws = _shares(seeds, stream=0), _shares(samples, stream=1)

    def difference(draws: Array) -> Array:
        # A draw of samples of which none has a target says nothing.
        targets = np.where(counts @ draws.T > 0, counts @ draws.T, np.nan)
        means = [(part @ draws.T) / targets for part in (sums, reference)]
        method, other = (_OF_MEAN.get(metric, np.asarray)(mean) for mean in means)
        return method - other

    low, high = np.nanquantile(
        (seed_draws * difference(sample_draws).T).sum(axis=1), [0.025, 0.975]
    )
    return float(difference(np.full((1, samples), 1 / samples)).mean()), float(low), float(high)


@cache
def _shares(size: int, *, stream: int) -> Array:
    """Return each item's share of each bootstrap sample, shape ``(RESAMPLES, size)``."""
    generator = np.random.default_rng(stream)
    return generator.multinomial(size, [1 / size] * size, RESAMPLES) / size
