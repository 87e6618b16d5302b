"""Paired bootstrap intervals of the difference of two methods."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 2000


def paired_difference(
    errors: Array, reference: Array, *, metric: str
) -> tuple[float, float, float]:
    """Return the difference of a metric and its 95 % bootstrap interval.

    Both the seeds and the test samples are drawn with replacement, the same draw for both methods
    (the pigeonhole bootstrap), so that the interval covers another training run and another test
    set. With few seeds it is an approximation: five seeds say little about a sixth.

    Args:
        errors: Absolute errors of the method, shape ``(seeds, samples)``.
        reference: Absolute errors of the reference on the same seeds and samples.
        metric: ``"MAE"`` or ``"GM"``.

    Returns:
        Method minus reference, and the lower and upper end of the interval, in target units.

    References:
        Owen (2007), `The pigeonhole bootstrap <https://arxiv.org/abs/0712.1111>`_.
    """
    if errors.shape != reference.shape:
        raise ValueError(
            f"Expected the errors of two methods on the same seeds and samples, but got shapes "
            f"{errors.shape} and {reference.shape}."
        )
    seeds, samples = errors.shape
    seed_draws, sample_draws = _shares(seeds, stream=0), _shares(samples, stream=1)
    draws = _metric(errors, sample_draws, metric) - _metric(reference, sample_draws, metric)
    low, high = np.quantile((seed_draws * draws.T).sum(axis=1), [0.025, 0.975])
    whole = np.full((1, samples), 1 / samples)
    difference = _metric(errors, whole, metric) - _metric(reference, whole, metric)
    return float(difference.mean()), float(low), float(high)


@cache
def _shares(size: int, *, stream: int) -> Array:
    """Return each item's share of each bootstrap sample, shape ``(RESAMPLES, size)``."""
    generator = np.random.default_rng(stream)
    return generator.multinomial(size, [1 / size] * size, RESAMPLES) / size


def _metric(errors: Array, draws: Array, metric: str) -> Array:
    """Return the metric per seed and draw, shape ``(seeds, draws)``."""
    if metric == "MAE":
        return errors @ draws.T
    # Predictions are stored with three decimals: an error of 0 stands for one below half of that.
    result: Array = np.exp(np.log(np.maximum(errors, 5e-4)) @ draws.T)
    return result
