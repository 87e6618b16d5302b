"""Paired bootstrap intervals of the difference of two methods."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 2000
_OF_MEAN: dict[str, Callable[[Array], Array]] = {"GM": np.exp, "RMSE": np.sqrt}
"""The metric, of the mean over targets; others are the mean itself."""


def metric_on_draws(sums: Array, counts: Array, *, metric: str, fold: int = 0) -> Array:
    """Return a metric of each run on the test samples, and on each bootstrap sample of them.

    Args:
        sums: What each test sample adds to the metric in each run, shape ``(seeds, samples)``:
            absolute errors for MAE, their logarithms for GM, squares for RMSE, hits for delta_1.
        counts: How many targets each sample has in the region, shape ``(samples,)``: 1 or 0, or a
            map's pixels. The draws of all regions are the same.
        metric: ``"MAE"``, ``"GM"``, ``"RMSE"`` or ``"delta_1"``.
        fold: Which test set it is: others are drawn by themselves.

    Returns:
        The metric, shape ``(1 + RESAMPLES, seeds)``; NaN where there is no target.
    """
    if not counts.sum():
        return np.full((1 + RESAMPLES, len(sums)), np.nan)
    shares = _shares(len(counts), stream=(1, fold))
    targets = shares @ counts
    # A draw of samples of which none has a target says nothing.
    means: Array = (shares @ sums.T) / np.where(targets > 0, targets, np.nan)[:, None]
    return _OF_MEAN.get(metric, np.asarray)(means)


def balanced_on_draws(
    sums: Array, counts: Array, bins: NDArray[np.int64], *, fold: int = 0
) -> Array:
    """Return the bMAE of each run on the test samples, and on each bootstrap sample of them.

    A draw often lacks the one sample of a rare bin, whose error is large, so that draws are lower
    than the figure. They are shifted to have it as their mean. How much another sample of such a
    bin would differ they cannot tell.

    Args:
        sums: Absolute errors, shape ``(seeds, samples)``.
        counts: 1 for a sample that counts, else 0, shape ``(samples,)``.
        bins: The bin of each sample's target, shape ``(samples,)``.
        fold: As for :func:`metric_on_draws`.

    Returns:
        As :func:`metric_on_draws`.
    """
    if not counts.sum():
        return np.full((1 + RESAMPLES, len(sums)), np.nan)
    order = np.argsort(bins, kind="stable")
    starts = np.flatnonzero(np.diff(bins[order], prepend=-1))
    shares = (_shares(len(bins), stream=(1, fold)) * counts)[:, order]
    of_bins = np.add.reduceat(shares, starts, axis=1)
    drawn = of_bins > 0
    divisors, occupied = np.where(drawn, of_bins, 1.0), drawn.sum(axis=1)
    runs = [
        (np.add.reduceat(shares * row[order], starts, axis=1) / divisors).sum(axis=1)
        for row in sums
    ]
    found: Array = np.stack(runs, axis=1) / np.where(occupied > 0, occupied, np.nan)[:, None]
    found[1:] += found[0] - np.nanmean(found[1:], axis=0)
    return found


def paired_difference(
    method: Array, reference: Array, folds: Sequence[int] = ()
) -> tuple[float, float, float]:
    """Return the difference of a metric and its 95 % bootstrap interval.

    Both the seeds and the test samples are drawn with replacement, the same draw for both methods
    (the pigeonhole bootstrap), so that the interval covers another training run and another test
    set. With few seeds it is an approximation: five seeds say little about a sixth. Where there are
    folds they are drawn, and then the seeds of each.

    Args:
        method: What :func:`metric_on_draws` returns of a method.
        reference: The same of the reference, on the same seeds and samples.
        folds: The fold of each seed; all are of the same if it is empty.

    Returns:
        Method minus reference, and the lower and upper end of the interval, in the metric's unit;
        NaN if there is no target.

    References:
        Owen (2007), `The pigeonhole bootstrap <https://arxiv.org/abs/0712.1111>`_.
    """
    if method.shape != reference.shape:
        raise ValueError(
            f"Expected two methods on the same seeds, but got shapes {method.shape} and "
            f"{reference.shape}."
        )
    return interval_of(mean_on_draws(method - reference, folds))


def mean_on_draws(values: Array, folds: Sequence[int] = ()) -> Array:
    """Return the mean over runs, and over those of each draw, shape ``(1 + RESAMPLES,)``.

    Args:
        values: Of each run, shape ``(1 + RESAMPLES, seeds)``.
        folds: As for :func:`paired_difference`.
    """
    mean: Array = (_shares_of_runs(tuple(folds) or (0,) * values.shape[1]) * values).sum(axis=1)
    return mean


def interval_of(values: Array) -> tuple[float, float, float]:
    """Return a figure and the ends of its 95 % interval, of itself and of its draws."""
    value, *drawn = values
    if math.isnan(value):
        return math.nan, math.nan, math.nan
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(value), float(low), float(high)


def differ_from_zero(intervals: Sequence[tuple[float, float, float]]) -> list[bool]:
    """Return which differences are significant on the 5 % level, all of them together (Holm).

    The draws of the bootstrap are too few for levels so low: an end of an interval is taken for
    1.96 standard errors of a normal distribution.

    Args:
        intervals: Differences, each with the ends of its 95 % interval; NaN says nothing, and is
            not counted.

    References:
        Holm (1979), A Simple Sequentially Rejective Multiple Test Procedure.
    """
    known = [place for place, ends in enumerate(intervals) if not math.isnan(ends[0])]
    levels = {place: _level(*intervals[place]) for place in known}
    found = [False] * len(intervals)
    for rank, place in enumerate(sorted(levels, key=levels.__getitem__)):
        if levels[place] * (len(levels) - rank) > 0.05:
            break
        found[place] = True
    return found


def _level(value: float, low: float, high: float) -> float:
    """Return the level on which a difference is significant by itself."""
    if value == 0:
        return 1.0
    towards_zero = value - low if value > 0 else high - value
    normal = NormalDist()
    # A skewed bootstrap may lie beyond the difference itself.
    errors = math.inf if towards_zero <= 0 else abs(value) * normal.inv_cdf(0.975) / towards_zero
    return 2 * normal.cdf(-errors)


@cache
def _shares_of_runs(folds: tuple[int, ...]) -> Array:
    """Return each run's share, of its fold and in it; the shape is that of :func:`_shares`."""
    names = sorted(set(folds))
    shares = np.empty((1 + RESAMPLES, len(folds)))
    for place, name in enumerate(names):
        members = [k for k, fold in enumerate(folds) if fold == name]
        of_fold = _shares(len(names), stream=(2, 0))[:, [place]]
        shares[:, members] = of_fold * _shares(len(members), stream=(0, name))
    return shares


@cache
def _shares(size: int, *, stream: tuple[int, int]) -> Array:
    """Return each item's share, equal ones first, then those of each bootstrap sample.

    The shape is ``(1 + RESAMPLES, size)``.
    """
    equal = [1 / size] * size
    generator = np.random.default_rng(stream)
    return np.vstack([equal, generator.multinomial(size, equal, RESAMPLES) / size])
