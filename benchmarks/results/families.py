"""Families: a way of training, run with the weights n^-a of several exponents a.

The larger the exponent, the more the rare targets count: the error on them falls, and the error on
all rises. So a way of training gains only if its error on few-shot targets is lower at the same
error on all (see :func:`distance`).
"""

import math
import statistics
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.experiment.record import COMMITTED
from benchmarks.experiment.registry import dataset_names, get_dataset
from benchmarks.results.intervals import interval_of, mean_on_draws
from benchmarks.results.results import Interval, Results

Array = NDArray[np.float64]

FAMILIES = {
    "weighted": "Weights alone",
    "averaged": "Weight average",
    "bsam_weighted": "BSAM",
    "bsam_quarter": "BSAM, quarter",
}
"""How they are called where all are weighted."""
BASIS = "weighted"
"""The family that others are compared with: weights, and nothing else."""
EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
FOLDER = COMMITTED / "exponents"
"""The records of each exponent, in a folder that it names."""
BETWEEN = 250
"""Points into which a straight line between two exponents is cut."""
LEVELS = 11
"""Errors on all at which curves are compared."""


@dataclass(frozen=True)
class Point:
    """A family with one exponent."""

    method: str
    exponent: float
    results: Results

    def mean(self, region: str, metric: str = "") -> float:
        """Return the test error at the end of training, the mean over runs."""
        return self.results.by(metric=metric).mean(self.method, region=region)

    @property
    def validation(self) -> float:
        """The balanced validation error at the end of training, the mean over runs."""
        ends = [run.history[-1] for run in self.results.records[self.method]]
        errors = [end[f"validation/all/{balanced_metric(self.results.name)}"] for end in ends]
        # An error that is not finite is None in a record.
        return statistics.mean(math.inf if error is None else error for error in errors)

    @property
    def passes(self) -> float:
        """Forward and backward passes of a run."""
        return self.results.records[self.method][0].passes


def balanced_metric(dataset: str) -> str:
    """Return the metric in which every target value counts alike.

    It is the bMAE, or the first metric of a data set that tests every value equally often.
    """
    metrics = get_dataset(dataset).metrics
    return "bMAE" if "bMAE" in metrics else metrics[0]


@cache
def curve(dataset: str, method: str) -> tuple[Point, ...]:
    """Return a family's points by their exponents; none if an exponent has no records.

    Raises:
        ValueError: If the exponents do not have the same seeds, as while they are run.
    """
    found = [(exponent, _results(dataset, exponent)) for exponent in EXPONENTS]
    if any(method not in results.records for _, results in found):
        return ()
    seeds = {f"{exponent:g}": results.seeds(method) for exponent, results in found}
    if len({tuple(of_exponent) for of_exponent in seeds.values()}) > 1:
        raise ValueError(
            f"Expected all exponents of {method} on {dataset} to have the same seeds, but got "
            f"{seeds}."
        )
    return tuple(Point(method, exponent, results) for exponent, results in found)


def chosen(dataset: str, method: str) -> Point:
    """Return the exponent with the lowest balanced validation error.

    Raises:
        ValueError: If an exponent has no records.
    """
    points = curve(dataset, method)
    if not points:
        raise ValueError(
            f"Expected records of {method} on {dataset} with each exponent in {FOLDER}."
        )
    return min(points, key=lambda point: point.validation)


def settings_by_epochs(choices: dict[str, Any]) -> dict[int, Any]:
    """Return for each number of epochs the best setting with the exponent 1/2, the fewest first.

    Args:
        choices: Of a method, as its data set's ``tuning.json`` has them.
    """
    tried = {name: row for name, row in choices.items() if row["recipe"]["exponent"] == 0.5}
    return {
        epochs: best_setting(
            {name: row for name, row in tried.items() if row["recipe"]["epochs"] == epochs}
        )
        for epochs in sorted({row["recipe"]["epochs"] for row in tried.values()})
    }


def best_setting(choices: dict[str, Any]) -> Any:
    """Return the setting with the lowest balanced validation error at the end of training."""
    return min(choices.values(), key=balanced_error)


def balanced_error(setting: Any) -> float:
    """Return a setting's balanced validation error at the end of training.

    Where every target is tested equally often, that is the error on all. If the setting diverged,
    it is infinite.
    """
    error: float | None = setting["last"].get("balanced", setting["last"]["all"])
    return math.inf if error is None else error


def measured(method: str) -> list[str]:
    """Return the data sets with records of a family and of the basis."""
    return [name for name in dataset_names() if curve(name, method) and curve(name, BASIS)]


@cache
def difference(dataset: str, method: str, *, region: str, metric: str = "") -> Interval:
    """Return the error of a family minus the basis', each with its chosen exponent."""
    _check_seeds(dataset, method)
    return Interval(
        *interval_of(
            _on_draws(chosen(dataset, method), region, metric)
            - _on_draws(chosen(dataset, BASIS), region, metric)
        )
    )


@cache
def gain_of_weights(dataset: str, *, region: str, metric: str = "") -> Interval:
    """Return the error of the basis with its chosen exponent minus that without weights."""
    without = curve(dataset, BASIS)[0]
    return Interval(
        *interval_of(
            _on_draws(chosen(dataset, BASIS), region, metric) - _on_draws(without, region, metric)
        )
    )


@cache
def distance(dataset: str, method: str) -> Interval:
    """Return how far a family's error on few-shot targets is above the basis' at equal all.

    A curve goes straight from exponent to exponent. It reaches an error on all with each of its
    points that have no larger one, of which the lowest on few-shot targets counts. The curves are
    compared at equally spaced errors on all: from the lowest that both reach to that at which the
    first of them comes no lower on few-shot targets. The mean of the differences is the distance.

    Returns:
        In target units, negative if the family is better, with its 95 % interval over folds, seeds
        and test samples.
    """
    _check_seeds(dataset, method)
    ours, basis = _curve_on_draws(dataset, method), _curve_on_draws(dataset, BASIS)
    return Interval(*interval_of(distances(ours, basis)))


def distances(ours: tuple[Array, Array], basis: tuple[Array, Array]) -> Array:
    """Return the distance of two curves on each draw, see :func:`distance`.

    Args:
        ours: Errors on all and on few-shot targets, each of shape ``(draws, exponents)``.
        basis: The same of the other family.
    """
    curves = [_filled(*ours), _filled(*basis)]
    start = np.maximum(*(all_.min(axis=1) for all_, _ in curves))
    ends = [all_[np.arange(len(all_)), few.argmin(axis=1)] for all_, few in curves]
    stop = np.maximum(start, np.minimum(*ends))
    levels = np.linspace(start, stop, LEVELS, axis=1)
    reached = [
        np.stack([np.where(all_ <= level[:, None], few, np.inf).min(axis=1) for level in levels.T])
        for all_, few in curves
    ]
    mean: Array = (reached[0] - reached[1]).mean(axis=0)
    return mean


def _check_seeds(dataset: str, method: str) -> None:
    """Raise if a family and the basis cannot be paired."""
    ours, basis = (curve(dataset, name)[0].results.seeds(name) for name in (method, BASIS))
    if ours != basis:
        raise ValueError(
            f"Expected {method} and {BASIS} on {dataset} to have the same seeds, but got {ours} "
            f"and {basis}."
        )


def _filled(all_: Array, few: Array) -> tuple[Array, Array]:
    """Return the points on the straight lines between neighbours, ends included."""
    steps = np.linspace(0, 1, BETWEEN, endpoint=False)

    def fill(values: Array) -> Array:
        columns = list(pairwise(values.T))
        lines = [a[:, None] + (b - a)[:, None] * steps for a, b in columns]
        return np.concatenate([*lines, values[:, -1:]], axis=1)

    return fill(all_), fill(few)


def _curve_on_draws(dataset: str, method: str) -> tuple[Array, Array]:
    """Return a curve's errors on all and on few-shot targets, first the figures, then the draws."""
    points = curve(dataset, method)
    all_, few = (
        np.stack([_on_draws(point, region, "") for point in points], axis=1)
        for region in ("all", "few")
    )
    return all_, few


def _on_draws(point: Point, region: str, metric: str) -> Array:
    """Return the mean over the runs on each draw."""
    results = point.results.by(metric=metric)
    folds = [results.dataset.fold(run.seed) for run in results.records[point.method]]
    return mean_on_draws(results.on_draws(point.method, region), folds)


@cache
def _results(dataset: str, exponent: float) -> Results:
    return Results(dataset, FOLDER / f"{exponent:g}")
